"""TopK: keep the tokens that receive the most attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class TopK(Method):
    """Keep the K highest-scoring tokens, protected ones included, and drop the others.

    Options: score: class (attention of the class token), received (attention received from all tokens),
    key_norm (length of the mean key), or auto (class where there is a class token, else received); order of
    the kept tokens: position, or score (descending, as published). Padding leaves first.
    """

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "keep the tokens that receive the most class attention"
    paper: ClassVar[str] = "Haurum et al., Which Tokens to Use?, ICCVW 2023 (Top-K baseline)"
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "metric")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    drops: ClassVar[bool] = True

    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received", "key_norm"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return scores.pruned(op, taps, site, steps.importance(op, taps, site, self.score), self.order)
