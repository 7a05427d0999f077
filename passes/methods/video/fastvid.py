"""FastVID: in each frame the most salient tokens stay; the rest of a segment joins the dense tokens of its anchor frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clips, clusters, frames, greedy, scores, segments, steps

NEIGHBOURS = 4


@dataclass(frozen=True)
class FastVID(Method):
    """Keep the s most salient tokens of each frame, and merge all others of a segment into centres of its anchor frames.

    Of the m tokens a frame keeps, floor(m d) are context and the others salient. Anchors are every p-th frame of a segment,
    counted from its last; they share the context of the segment's frames evenly. Centres are the density peaks of an anchor's
    tokens that are not salient; every other such token of the segment joins the centre of largest cosine, and a cluster becomes
    w of its centre and 1 - w of the mean of all of it, w = max(1 / (count + 1), beta). K = P + F s + the sum of the anchors'.
    Kept tokens ascend, centres among them. Tokens that may be padding are refused: rows of padding are dense, so that they
    would be centres, and what is not salient joins a centre in any case.
    Options: frames F (0: from the grid (F, h, w), else one); segments: frames of each, as in 3+5 (empty: eight, as even as can
    be); context d; anchor p; beta; score: auto, class, received or importance (an input of the model, published: the
    attention of the tower's pooling head).
    """

    name: ClassVar[str] = "fastvid"
    summary: ClassVar[str] = (
        "keep salient tokens of each frame, merge the rest of a segment into its anchor frames"
    )
    paper: ClassVar[str] = (
        "Shen et al., FastVID: Dynamic Density Pruning for Fast Video Large Language Models, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = (
        "tokens",
        "class_attention",
        "received_attention",
        "importance",
        "grid",
    )
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the frames of each segment are given, where the authors cut between the frames that are least alike, and everywhere "
        "below a cosine of 0.9"
    )
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("FastVID",)

    frames: int = 0
    segments: str = ""
    context: float = 0.4
    anchor: int = 4
    beta: float = 0.6
    score: str = "auto"

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        steps.at_least(self.name, "anchor", self.anchor, 1)
        steps.choice(self.name, "score", self.score, greedy.HOW)
        if not (0 <= self.context < 1 and 0 <= self.beta <= 1):
            raise MethodError(
                f"options context={self.context}, beta={self.beta} of method {self.name!r}: expected 0 to 1, and context below 1"
            )

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        if taps.padded:
            raise MethodError(
                "fastvid joins all tokens of a segment, and here some may be padding, which would be joined with them; use a "
                "method that only selects, e.g. evs"
            )
        count, each, parts = self._layout(site)
        kept = round(segments.fitted(self.name, site, self._totals(each, parts)) * each)
        salient = kept - int(kept * self.context)
        rows = frames.folded(op, taps, site, count)
        score = scores.numbers(op, greedy.importance(op, taps, site, self.score))
        flat = op("Reshape", steps.free(op, score, site), np.array([-1, each]))
        _, rest = segments.places(op, flat, salient, each)
        rest = op("Reshape", rest, np.array([-1, count, each - salient]))
        start, joined = 0, []
        for length in parts:
            anchors, share = self._centres(kept, length)
            if not self._fits(kept, each, length):
                raise PlanError(
                    f"block {site.block}: {self.name}: each anchor of a segment of {length} frames would have {share} centres "
                    f"among the {each - salient} of its {each} tokens that are not salient; say shorter segments "
                    "(--set segments=), more anchors (--set anchor=) or another --set context"
                )
            own, index = (steps.cut(op, value, start, start + length) for value in (rows, rest))
            joined.append(
                self._joining(op, own, index, Part(start, length, each, each - salient, anchors, share))
            )
            start += length
        return _merged(op, taps, site, joined)

    def counts(self, site: Site) -> Sequence[int]:
        _, each, parts = self._layout(site)
        fitting = (kept for kept in range(1, each) if all(self._fits(kept, each, length) for length in parts))
        return sorted({site.protect + self._total(kept, parts) for kept in fitting})

    def _fits(self, kept: int, each: int, length: int) -> bool:
        """Whether each anchor of a segment has centres, and no more than there are tokens that are not salient."""
        return 0 < self._centres(kept, length)[1] <= each - kept + int(kept * self.context)

    def _layout(self, site: Site) -> tuple[int, int, list[int]]:
        """Frames, tokens of each, and frames of each segment."""
        count, each = frames.split(self.name, self.frames, site)
        parts = segments.lengths(self.name, self.segments, count, 8)
        return count, each, [1] * count if self.anchor == 1 else parts

    def _totals(self, each: int, parts: list[int]) -> Callable[[float], int]:
        """How many tokens stay at a ratio."""
        return lambda ratio: self._total(round(ratio * each), parts)

    def laid_out(self, grid: tuple[int, ...] | None) -> FastVID:
        return replace(self, frames=self.frames or clips.of_grid(grid))

    def _centres(self, kept: int, length: int) -> tuple[list[int], int]:
        """The anchors of a segment of `length` frames, each of which keeps `kept` tokens, and the centres of each anchor."""
        anchors = [*range(length - 1, -1, -self.anchor)][::-1]
        return anchors, length * int(kept * self.context) // len(anchors)

    def _total(self, kept: int, parts: list[int]) -> int:
        shares = (self._centres(kept, length) for length in parts)
        return sum(parts) * (kept - int(kept * self.context)) + sum(
            len(anchors) * share for anchors, share in shares
        )

    def _joining(self, op: Ops, rows: Value, rest: Value, part: Part) -> Joining:
        """Which tokens at the places `rest` [B,F,m] of a segment's rows [B,F,n,C] join which, and with what weights."""
        length, count = part.length, part.length * part.free
        first = (np.arange(length) + part.start) * part.each
        place = op("Reshape", op("Add", rest, first[None, :, None]), np.array([-1, count]))
        flat = op("Reshape", rows, np.array([0, length * part.each, -1]))
        own = steps.gather(op, flat, op("Sub", place, np.array(part.start * part.each)))
        center = _peaks(op, own, part)
        itself = op("Equal", op("Unsqueeze", center, steps.LAST), np.arange(count)[None, None])
        unit = op("LpNormalization", own, axis=2, p=2)
        near = op("MatMul", steps.gather(op, unit, center), op("Transpose", unit, perm=[0, 2, 1]))
        assign = op("ArgMax", op("Where", itself, 2.0, near), axis=1, keepdims=0)
        member = op("Cast", clusters.members(op, assign, part.share * len(part.anchors)), to=steps.FLOAT)
        number = op("ReduceSum", member, steps.LAST, keepdims=1)
        middle = op("Max", op("Div", 1.0, op("Add", number, 1.0)), self.beta)
        each = op("Div", op("Sub", 1.0, middle), op("Max", number, 1.0))
        weight = op("Add", op("Mul", member, each), op("Mul", op("Cast", itself, to=steps.FLOAT), middle))
        carrier = op("GatherElements", place, center, axis=1)
        return Joining(
            place,
            op("GatherElements", carrier, assign, axis=1),
            op("ReduceSum", weight, np.array([1]), keepdims=0),
            carrier,
        )


@dataclass(frozen=True)
class Part:
    """A segment of frames of n tokens, m of which are not salient, and its anchors, counted from its first frame."""

    start: int
    length: int
    each: int
    free: int
    anchors: list[int]
    share: int


@dataclass(frozen=True)
class Joining:
    """Tokens [B,R] among the unprotected, the centre each goes to, its weight there, and all centres [B,Z]."""

    place: Value
    goes: Value
    weight: Value
    center: Value


def _peaks(op: Ops, rows: Value, part: Part) -> Value:
    """The centres of all anchors, anchor by anchor, ascending: [B,A*share]; those of each are found beside one another."""
    first = np.array(part.anchors) * part.free
    own = op("Gather", rows, (first[:, None] + np.arange(part.free)).ravel(), axis=1)
    split = op("Reshape", own, np.array([-1, part.free, 0]))
    center, _ = segments.ascending_peaks(op, split, part.free, part.share, NEIGHBOURS)
    placed = op("Add", op("Reshape", center, np.array([-1, len(first), part.share])), first[None, :, None])
    return op("Reshape", placed, np.array([-1, len(first) * part.share]))


def _merged(op: Ops, taps: Taps, site: Site, parts: list[Joining]) -> Reduction:
    tokens = site.tokens - site.protect
    place, goes, weight, center = (
        bipartite.joined(op, [getattr(part, name) for part in parts])
        for name in ("place", "goes", "weight", "center")
    )
    one = segments.fill(op, taps.tokens, 1.0, tokens)
    gone = op("ScatterElements", one, place, op("Mul", weight, 0.0), axis=1)
    back = op("Cast", op("Add", op("Mul", center, 0), np.array(1)), to=steps.FLOAT)
    stays = op("ScatterElements", gone, center, back, axis=1)
    every = steps.numbered(op, taps.tokens, tokens)
    centers, assign = clusters.carried(op, stays, op("ScatterElements", every, place, goes, axis=1), site)
    whole = op("ScatterElements", one, place, weight, axis=1)
    if site.protect:
        whole = op("Concat", segments.fill(op, taps.tokens, 1.0, site.protect), whole, axis=1)
    return clusters.merged(op, taps, site, centers, assign, op("Unsqueeze", whole, steps.LAST))
