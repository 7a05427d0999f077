"""EViT: keep the attentive tokens and fuse the others into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class EViT(Method):
    """Keep the tokens with the highest class attention; the sum of the others, weighted by it, is appended.

    The fused token f = sum of a_j x_j over the dropped j is not renormalised, as published. It is the last
    token, counts as an ordinary token later, and takes the place of the highest-scoring dropped token; in
    `assign` the tokens fused into it are -1, because it does not stand for any one of them. Padding leaves first and
    is not fused.
    Options: fuse; score: class, received or auto; order of the kept tokens: position, or score (as
    published).
    """

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "keep the tokens with the most class attention, fuse the rest into one token"
    paper: ClassVar[str] = "Liang et al., Not All Patches are What You Need (EViT), ICLR 2022"
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("EViT", "Which Tokens to Use (10 methods)")
    drops: ClassVar[bool] = True

    fuse: bool = True
    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = steps.importance(op, taps, site, self.score)
        there = scores.present(op, taps)
        score = score if there is None else op("Mul", score, there)
        kept = site.keep - 1 if self.fuse else site.keep
        index = scores.select(op, taps, site, score, self.order, kept)
        if not self.fuse:
            return steps.pruned(op, taps, site, index)

        none = op(
            "Expand", op.constant(np.zeros((1, 1), np.float32)), steps.batch_shape(op, taps.tokens, kept)
        )
        weight = op("Unsqueeze", op("ScatterElements", score, index, none, axis=1), np.array([1]))
        tokens = op("Concat", steps.gather(op, taps.tokens, index), self._fused(op, taps, weight), axis=1)
        ranked = scores.select(op, taps, site, score, steps.BY_SCORE, kept + 1)
        next_best = op("Slice", ranked, np.array([kept]), np.array([kept + 1]), np.array([1]))
        return Reduction(
            tokens,
            self._sizes(op, taps, index, kept),
            op("Concat", index, next_best, axis=1),
            steps.kept_map(op, taps.tokens, index, kept, site),
        )

    def _fused(self, op: Ops, taps: Taps, weight: Value) -> Value:
        """Return the weighted sum [B,1,C] of the tokens; weight [B,1,N] is zero where one was kept."""
        fused = op("MatMul", weight, op("Cast", taps.tokens, to=steps.FLOAT))
        return op("CastLike", fused, taps.tokens)

    def _sizes(self, op: Ops, taps: Taps, index: Value, kept: int) -> Value | None:
        """Return sizes [B,K,1]: the fused token stands for everything dropped; None while all are one."""
        if taps.size is None:
            return None
        size = steps.gather(op, taps.size, index)
        none = op(
            "Expand", op.constant(np.zeros((1, 1), np.float32)), steps.batch_shape(op, taps.tokens, kept)
        )
        left = op("ScatterElements", op("Squeeze", taps.size, steps.LAST), index, none, axis=1)
        rest = op("ReduceSum", op("Unsqueeze", left, steps.LAST), np.array([1]), keepdims=1)
        return op("Concat", size, rest, axis=1)

    def fewest(self, tokens: int, protect: int) -> int:
        return self.after_keeping(1, protect)

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + int(self.fuse)
