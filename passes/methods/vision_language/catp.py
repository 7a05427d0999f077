"""CATP, first stage: tokens that cover their picture and resemble its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, rows, scores, steps, words

MOST = 1e9


@dataclass(frozen=True)
class Catp(Method):
    """Choose tokens one by one, each time the one that adds most to the cover of all tokens plus `text_weight` times its own s.

    Cover is the sum over tokens of the largest s to a chosen one, s = (1 + cos) / 2; a token's own s is that to the mean of the
    text's embeddings. Each picture is pruned by itself. The paper's second stage, inside the language model, is catp_inner.
    Padding covers nothing and comes last.
    Options: text_weight, 0.7 as published; order of the kept tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "catp"
    summary: ClassVar[str] = "choose tokens one by one that cover the picture and resemble the text"
    paper: ClassVar[str] = (
        "Li et al., CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning, "
        "arXiv 2508.07871"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "text")
    evidence: ClassVar[Evidence] = "independent implementation"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("text", "text_mask?")
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("CATP: the first stage",)

    text_weight: float = 0.7
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if not 0 <= self.text_weight <= MOST:
            raise MethodError(
                f"option text_weight={self.text_weight} of method {self.name!r}: expected 0 to {MOST:g}"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
        text = op("LpNormalization", words.mean(op, taps), axis=2, p=2)
        alike = op("Mul", op("Add", op("ReduceSum", op("Mul", unit, text), steps.LAST, keepdims=0), 1.0), 0.5)
        one = scores.filled(op, unit, 1.0, site.tokens - site.protect, 1)
        there = scores.present(op, taps)
        if there is not None:
            own = steps.free(op, there, site)
            one, alike = op("Unsqueeze", own, steps.LAST), op("Mul", alike, own)
        # A 1 beside a row of length one makes the cosine of two rows (1 + cos) / 2.
        metric = op("Concat", unit, one, axis=2)
        index = op(
            "TokenCoverSelect",
            metric,
            alike,
            keep=site.keep - site.protect,
            protect=0,
            order=steps.ORDERS[self.order],
            power=0.0,
            mix=float(self.text_weight),
        )
        return steps.pruned(op, taps, site, clusters.whole(op, taps, site, index))
