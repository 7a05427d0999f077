"""FasterVLM: keep the patches that the class token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class FasterVLM(Method):
    """Keep the K tokens with the most attention of the class token, averaged over heads, in ascending position.

    Published at the features of the tower's last block but one, with the attention of that block. Of several crops each
    keeps as many. Padding leaves first.
    Options: score: class, as published, received (for towers without a class token) or auto; order of the kept tokens:
    position, as published, or score.
    """

    name: ClassVar[str] = "fastervlm"
    summary: ClassVar[str] = (
        "keep the patches with the most attention of the class token, before the projector"
    )
    paper: ClassVar[str] = (
        "Zhang et al., [CLS] Attention is All You Need for Training-Free Visual Token Pruning, arXiv 2412.01818v1"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("FasterVLM",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True

    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return scores.pruned(op, taps, site, steps.importance(op, taps, site, self.score), self.order)
