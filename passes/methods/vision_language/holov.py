"""HoloV: crops share the tokens by their mean attention, and each keeps its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import quotas, rows, scores, steps
from tokenrt.passes.methods.parts.quotas import COLUMN, Groups

SCALE = 1e3
EPSILON = 1e-6


@dataclass(frozen=True)
class HoloV(Method):
    """Split the tokens into P stretches, share K among them, keep in each those with the most class attention.

    Stretch p has the weight w = s / sum of s, s the mean of 1000 a + alpha v over it: a is the class attention and v how much
    a token's cosines to its stretch vary, scaled to the size of 1000 a. It gets floor(w K), and one more where w is largest
    until there are K. Padding leaves first.
    Options: parts P (0: max(1, floor(1024 N / (576 K))), as for Qwen2.5-VL; LLaVA has 16); alpha; score: class, received
    (towers without a class token) or auto; order: position, or score (as published: stretch by stretch, by falling attention
    inside, and a stretch that is kept whole by position); variant (see deviations).
    """

    name: ClassVar[str] = "holov"
    summary: ClassVar[str] = (
        "share the tokens among stretches by mean attention and variety, keep each one's best"
    )
    paper: ClassVar[str] = (
        "Zou et al., Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context Retention, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("HoloV",)
    deviations: ClassVar[str] = (
        "variant=reference: v is scaled inside each stretch, so that it cancels, and what a full stretch cannot take is lost: "
        "rows of zeros (size 0) come last; variant=paper: v is scaled over all tokens, and that goes to the best of the others"
    )

    parts: int = 0
    alpha: float = 0.09
    score: str = "auto"
    order: str = steps.BY_POSITION
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.at_least(self.name, "parts", self.parts, 0)
        steps.at_least(self.name, "alpha", self.alpha, 0)
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens, kept = site.tokens - site.protect, site.keep - site.protect
        parts = self.parts or min(max(1, 1024 * tokens // (576 * kept)), tokens)
        if parts > tokens:
            raise PlanError(f"option parts={parts} of method {self.name!r}: there are {tokens} tokens")
        groups = Groups.of(tokens, parts)
        score = scores.unpadded(op, taps, scores.numbers(op, steps.importance(op, taps, site, self.score)))
        attention = steps.free(op, score, site)
        weight = self._weights(op, taps, site, op("Max", attention, 0.0), groups)
        quota = groups.to_tokens(op, quotas.whole(op, op("Mul", weight, float(kept)), kept, parts, weight))
        rank = groups.ranks(op, attention)
        chosen = op("Less", rank, quota)
        index = quotas.select(op, taps, site, score, chosen)
        if self.order == steps.BY_POSITION and self.variant == scores.PAPER:
            return steps.pruned(op, taps, site, index)
        place = self._places(op, site, groups, rank, quota, chosen)
        made = steps.pruned(op, taps, site, quotas.arranged(op, site, index, place))
        return made if self.variant == scores.PAPER else _blanked(op, taps, site, made, chosen)

    def _weights(self, op: Ops, taps: Taps, site: Site, attention: Value, groups: Groups) -> Value:
        """The share of each stretch: [B,P]."""
        level = op("Mul", groups.means(op, attention), SCALE)
        if self.variant == scores.PAPER:
            variety = _variety(op, taps, site, groups)
            scale = op("ReduceMean", op("Mul", attention, SCALE), axes=[1], keepdims=1)
            every = op("Add", op("ReduceMean", variety, axes=[1], keepdims=1), EPSILON)
            level = op(
                "Add",
                level,
                op("Mul", groups.means(op, variety), op("Mul", op("Div", scale, every), self.alpha)),
            )
        total = op("Add", op("ReduceSum", level, COLUMN, keepdims=1), EPSILON)
        return op("Div", level, total)

    def _places(self, op: Ops, site: Site, groups: Groups, rank: Value, quota: Value, chosen: Value) -> Value:
        """What the kept tokens are sorted by: [B,T]; those that were not chosen come last."""
        place = np.arange(site.tokens - site.protect, dtype=np.float32)[None]
        ordered: Value = place
        if self.order == steps.BY_SCORE:
            length = np.array(groups.lengths, np.float32)[groups.number][None]
            ordered = op("Where", op("GreaterOrEqual", quota, length), place, op("Add", rank, groups.starts))
        return op("Where", chosen, ordered, place + site.tokens)


def _variety(op: Ops, taps: Taps, site: Site, groups: Groups) -> Value:
    """The variance of each token's cosines to its stretch, its own counting as 0: [B,T]."""
    unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
    number = groups.number
    beside = (number[:, None] == number) & ~np.eye(len(number), dtype=bool)
    inside = number[:, None] == number
    divisor = np.maximum(np.array(groups.lengths)[number] - 1, 1).astype(np.float32)[None]
    cosine = op(
        "Mul", op("MatMul", unit, op("Transpose", unit, perm=[0, 2, 1])), beside.astype(np.float32)[None]
    )
    mean = op("Div", op("ReduceSum", cosine, COLUMN, keepdims=0), divisor)
    apart = op("Mul", op("Sub", cosine, op("Unsqueeze", mean, COLUMN)), inside.astype(np.float32)[None])
    return op("Div", op("ReduceSum", op("Mul", apart, apart), COLUMN, keepdims=0), divisor)


def _blanked(op: Ops, taps: Taps, site: Site, made: Reduction, chosen: Value) -> Reduction:
    """The same with rows of zeros, of size 0, in place of tokens that were not chosen."""
    there = op("Cast", chosen, to=steps.FLOAT)
    if site.protect:
        there = op("Concat", scores.filled(op, there, 1.0, site.protect), there, axis=1)
    real = op("Unsqueeze", op("GatherElements", there, made.position, axis=1), COLUMN)
    size = real if made.size is None else op("Mul", made.size, real)
    tokens = op("Where", op("Greater", real, 0.5), op("Cast", made.tokens, to=steps.FLOAT), 0.0)
    assign = op("Where", op("Greater", there, 0.5), made.assign, np.array(steps.DROPPED))
    return Reduction(op("CastLike", tokens, taps.tokens), size, made.position, assign)
