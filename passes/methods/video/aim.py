"""AIM: in each frame merge the tokens that resemble another one, in rounds that halve them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, clips, clusters, frames, scores, steps


@dataclass(frozen=True)
class AIM(Method):
    """Merge the r tokens of each frame that are most like one at an odd place into that one, round after round.

    Sources are the even places of what the round before left, destinations the odd ones; likeness is the cosine of the tokens.
    Each round takes the plain mean of what meets, whatever it was made of, as published; the sizes that come out count all
    the same. Of n tokens a frame the authors leave n / 4, in rounds of n / 2 and n / 4: as many as a round can merge until
    n' are left, which is the default here.
    Output order: protected, then frame by frame the unmerged sources by descending likeness and the destinations, as published.
    This is the stage before the language model; the pruning inside it by PageRank is aim_pagerank.
    Options: frames F (0: from the grid (F, h, w), else one); rounds: the tokens that leave a frame in each, as in 98+49.
    """

    name: ClassVar[str] = "aim"
    summary: ClassVar[str] = "merge similar tokens of each frame, in rounds that halve them"
    paper: ClassVar[str] = (
        "Zhong et al., AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    systems: ClassVar[tuple[str, ...]] = ("AIM: merging before the language model",)

    frames: int = 0
    rounds: str = ""

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        if self.rounds and not all(part.isdigit() and int(part) for part in self.rounds.split("+")):
            raise MethodError(
                f"option rounds={self.rounds} of method {self.name!r}: expected numbers, as in 98+49"
            )

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each = frames.split(self.name, self.frames, site)
        left = clips.staying(self.name, site, count, "frames")
        metric = scores.apart(op, taps, steps.float_tokens(op, taps)) if taps.padded else None
        once = steps.free(op, bipartite.counted_once(op, taps, site), site)
        clip = replace(clips.start(op, taps, site, metric), size=once)
        for leave in self._leaving(site, each, left):
            each -= leave
            clip = clips.merge_inside(op, clip, count, each, 0, 1)
            clip = replace(clip, size=op("Min", clip.size, 1.0))
        total = clusters.collected(
            op, steps.free(op, steps.sizes(op, taps, site), site), clip.assign, clip.count
        )
        return clips.finish(op, taps, site, replace(clip, size=total), count)

    def _leaving(self, site: Site, each: int, left: int) -> list[int]:
        """How many tokens of a frame leave in each round. Raises: PlanError where the option does not fit."""
        if not self.rounds:
            return halvings(each, left)
        asked = [int(part) for part in self.rounds.split("+")]
        rest = each
        for leave in asked:
            if leave > rest // 2:
                raise PlanError(
                    f"{self.name}: rounds={self.rounds}: {leave} of {rest} tokens cannot leave in one round"
                )
            rest -= leave
        if rest != left:
            raise PlanError(
                f"block {site.block}: {self.name}: rounds={self.rounds} leaves {rest} of {each} tokens a frame, and "
                f"{site.keep} of {site.tokens} tokens would be {left}"
            )
        return asked

    @property
    def unit(self) -> int:
        return max(self.frames, 1)

    def laid_out(self, grid: tuple[int, ...] | None) -> AIM:
        return replace(self, frames=self.frames or clips.of_grid(grid))

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + clips.up(kept, self.unit)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + self.unit


def halvings(each: int, left: int) -> list[int]:
    """How many of `each` tokens leave in each round when every round merges all it can, until `left` are there."""
    leaving = []
    while each > left:
        leaving.append(min(each // 2, each - left))
        each -= leaving[-1]
    return leaving
