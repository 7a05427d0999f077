"""TopK: keep the tokens that receive the most attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods import _steps
from tokenrt.passes.methods.contract import Evidence, Family, Method, Ops, Reduction, Site, Taps


@dataclass(frozen=True)
class TopK(Method):
    """Keep the K highest-scoring tokens, protected ones included, and drop the others.

    Options: score: class (attention of the class token), received (attention received from all tokens),
    key_norm (length of the mean key), or auto (class where there is a class token, else received); order of
    the kept tokens: position, or score (descending, as published).
    """

    name: ClassVar[str] = "topk"
    family: ClassVar[Family] = "pruning"
    summary: ClassVar[str] = "keep the tokens that receive the most class attention"
    paper: ClassVar[str] = "Haurum et al., Which Tokens to Use?, ICCVW 2023 (Top-K baseline)"
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "metric")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True

    score: str = "auto"
    order: str = _steps.BY_POSITION

    def __post_init__(self) -> None:
        _steps.choice(self.name, "score", self.score, ("auto", "class", "received", "key_norm"))
        _steps.choice(self.name, "order", self.order, tuple(_steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = _steps.importance(op, taps, site, self.score)
        index = op(
            "TokenSelect", score, keep=site.keep, protect=site.protect, order=_steps.ORDERS[self.order]
        )
        return _steps.pruned(op, taps, site, index)
