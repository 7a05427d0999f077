"""SCOPE: choose the tokens that cover the others, weighted by saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, greedy, scores, steps

MOST_POWER = 4


@dataclass(frozen=True)
class Scope(Method):
    """Choose tokens one by one, each time the one of largest a_i^alpha times the sum over j of max(0, cos(i,j) - c_j).

    c_j is the largest cosine of token j to a chosen one, at least 0, and a the attention of the class token. Padding has no
    saliency and covers nothing.
    Options: alpha, 0 to 4; score: class, received (towers without a class token), importance (an input of the model) or auto;
    order of the kept tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "scope"
    summary: ClassVar[str] = (
        "choose one by one the tokens that cover the others best, weighted by class attention"
    )
    paper: ClassVar[str] = (
        "Deng et al., SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("SCOPE",)

    alpha: float = 1.0
    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, greedy.HOW)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if not 0 <= self.alpha <= MOST_POWER:
            raise MethodError(
                f"option alpha={self.alpha} of method {self.name!r}: expected 0 to {MOST_POWER}"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        features = clusters.finite(op, steps.float_tokens(op, taps))
        score = greedy.importance(op, taps, site, self.score)
        there = scores.present(op, taps)
        if there is not None:
            features = op("Where", op("Greater", taps.size, 0.0), features, 0.0)
            score = op("Mul", scores.numbers(op, score), there)
        index = op(
            "TokenCoverSelect",
            features,
            score,
            keep=site.keep,
            protect=site.protect,
            order=steps.ORDERS[self.order],
            power=float(self.alpha),
            mix=0.0,
        )
        return steps.pruned(op, taps, site, index)
