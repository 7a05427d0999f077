"""VisionZip: the tokens with the most class attention, and a few that the others join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import joining, scores, steps

PUBLISHED = "published"


@dataclass(frozen=True)
class VisionZip(Method):
    """Keep the K - c tokens with the most class attention, and c targets spread evenly over the others, which join them.

    Every other token joins the target of largest cosine of mean keys, of equals the first. A target becomes itself plus the
    mean of those that joined it. Order: the kept ones by position, then the targets. Published at the features of the last
    block but one, the class token among them (one protected token), with the attention and the keys of that block. Padding
    leaves first and adds nothing.
    Options: targets c, protected tokens not counted (0: max(1, round(share K))); share; way: sum as published, or mean, of the
    target and those that joined it (AngelSlim); order: published, or position; score: class, received (towers without a class
    token) or auto.
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "keep the tokens with the most class attention, and merge the others into a few"
    paper: ClassVar[str] = (
        "Yang et al., VisionZip: Longer is Better but Not Necessary in Vision Language Models, CVPR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "metric")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "features"
    systems: ClassVar[tuple[str, ...]] = ("VisionZip",)

    targets: int = 0
    share: float = 0.15625
    way: str = joining.SUM
    order: str = PUBLISHED
    score: str = "auto"

    def __post_init__(self) -> None:
        steps.at_least(self.name, "targets", self.targets, 0)
        steps.choice(self.name, "way", self.way, joining.WAYS)
        steps.choice(self.name, "order", self.order, (PUBLISHED, steps.BY_POSITION))
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        if not 0 <= self.share <= 1:
            raise MethodError(f"option share={self.share} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        kept = site.keep - self._targets(site.keep - site.protect)
        score = steps.importance(op, taps, site, self.score)
        index = scores.select(op, taps, site, score, steps.BY_POSITION, kept)
        made = joining.spread_targets(op, taps, site, index, kept, taps.metric(), self.way)
        return made if self.order == PUBLISHED else joining.by_position(op, taps, site, made)

    def _targets(self, kept: int) -> int:
        """c, which leaves one token or more to attention."""
        return min(self.targets or max(1, round(self.share * kept)), kept - 1)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + 2
