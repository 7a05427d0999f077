"""Quota: of each frame or crop keep as many tokens as the host says with each input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, frames, quotas, scores, steps

EVEN = "even"


@dataclass(frozen=True)
class Quota(Method):
    """Keep quotas[b,g] of the n tokens of group g, and K in all; the model gains the input quotas [B,G] int64.

    Groups are the frames of a clip, or crops, one behind the other. Of a group those stay that lie evenly spread over it,
    or those with the best score. The quotas of an input must add up to K - P and none may exceed n: that is the host's to
    see to, for the count of outputs is fixed. Where they ask for more, the last of those asked for are left out; where they
    ask for less, the first of the others stay as well. Kept tokens ascend. Padding leaves first where there is a score.
    Options: frames G (0: from the grid (G, h, w), else one); score: even, importance (an input of the model, [B,N]), received,
    class or key_norm.
    """

    name: ClassVar[str] = "quota"
    summary: ClassVar[str] = "keep as many tokens of each frame or crop as an input of the model says"
    paper: ClassVar[str] = (
        "Luo et al., QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension, arXiv 2503.08689"
    )
    reads: ClassVar[tuple[str, ...]] = ("quotas", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = "K is fixed and the quotas of every input add up to it"
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("quotas", "importance?")
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("QuoTA",)
    deviations: ClassVar[str] = (
        "the release resizes each frame to its quota, by default bilinearly; here tokens are kept as they are, spread as "
        "evenly as its own choice of places"
    )

    frames: int = 0
    score: str = EVEN

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        steps.choice(self.name, "score", self.score, (EVEN, "importance", "received", "class", "key_norm"))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each = frames.split(self.name, self.frames, site)
        asked = op("Unsqueeze", op("Cast", taps.quotas(), to=steps.FLOAT), steps.LAST)
        if self.score == EVEN:
            chosen = _spread(op, asked, each)
        else:
            chosen = op("Less", self._ranks(op, taps, site, count, each), asked)
        wanted = op("Reshape", op("Cast", chosen, to=steps.FLOAT), np.array([-1, count * each]))
        return scores.pruned(op, taps, site, scores.behind_protected(op, wanted, site), steps.BY_POSITION)

    def laid_out(self, grid: tuple[int, ...] | None) -> Quota:
        return replace(self, frames=self.frames or clips.of_grid(grid))

    def _ranks(self, op: Ops, taps: Taps, site: Site, count: int, each: int) -> Value:
        """How many tokens of its group come before each: [B,G,n]."""
        if self.score == "importance":
            score = taps.importance()
        else:
            score = steps.importance(op, taps, site, self.score)
        score = scores.unpadded(op, taps, scores.numbers(op, score))
        split = op("Reshape", steps.free(op, score, site), np.array([-1, count, each]))
        return quotas.ranks(op, split, each)


def _spread(op: Ops, quotas: Value, each: int) -> Value:
    """Which of n places are among q spread evenly, those where floor(i q / n) grows with the next i: [B,G,n]."""

    def whole(place: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Value:
        # Half a token more, so that the product's rounding never decides.
        share = op("Mul", op("Add", op("Mul", quotas, place), 0.5), 1 / each)
        return op("Cast", share, to=scores.INT64)

    place = np.arange(each, dtype=np.float32)
    return op("Greater", whole(place + 1), whole(place))
