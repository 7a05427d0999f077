"""ToP-ViM: the tokens a state-space branch answers to most stay, in scan order, around a class token in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

FIRST, MIDDLE = PLACES = ("first", "middle")


@dataclass(frozen=True)
class ToPViM(Method):
    """Keep the K tokens with the largest channel sum of the branch's output, in ascending position.

    The tap `values` is that output, [B,1,N,D]: of a state-space layer the output of its scan. State-space
    layers are no sites of a graph: there apply_method runs the step; at an attention the values are scored.
    class_place=middle (nothing protected): the class token is at N // 2, always stays and comes out at
    (K - 1) // 2, so the split around it is by count, as published; first: protected tokens lead.
    variant=paper sums what is positive; reference sums all, and protects a class token in the middle in the
    first image of a batch only, so that in others it may be kept a second time as a patch.
    """

    name: ClassVar[str] = "topvim"
    summary: ClassVar[str] = "keep the tokens with the largest sum of branch outputs, in scan order"
    paper: ClassVar[str] = "Zhan et al., Exploring Token Pruning in Vision State Space Models, NeurIPS 2024"
    reads: ClassVar[tuple[str, ...]] = ("values",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("ToP-ViM",)
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "paper: negative outputs count as 0; reference: they count, and only the first image protects a middle class token"
    )

    variant: str = scores.PAPER
    class_place: str = FIRST

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.choice(self.name, "class_place", self.class_place, PLACES)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        output = taps.values()
        if self.variant == scores.PAPER:
            output = op("Max", output, 0.0)
        score = op("ReduceSum", output, np.array([1, 3]), keepdims=0)
        if self.class_place == FIRST:
            return scores.pruned(op, taps, site, score, steps.BY_POSITION)
        if site.protect:
            raise MethodError(
                f"option class_place=middle of method {self.name!r} protects the token in the middle, "
                f"not the first {site.protect}; use protect=0 or class_place=first"
            )
        index = self._around(op, taps, site, score)
        kept = steps.pruned(op, taps, site, index)
        return Reduction(kept.tokens, kept.size, index, scores.last_slot(op, index, site, site.keep))

    def _around(self, op: Ops, taps: Taps, site: Site, score: Value) -> Value:
        """Positions [B,K]: half of the kept patches, the class token, the other half."""
        middle, patches = site.tokens // 2, site.keep - 1
        center = op("Expand", op.constant(np.full((1, 1), middle)), steps.batch_shape(op, taps.tokens, 1))
        if not patches:
            return center
        known = op("Where", op("IsNaN", score), steps.LOWEST, score)
        # Above the class token's minus infinity, whatever the score.
        score = scores.unpadded(op, taps, op("Max", known, steps.LOWEST))
        hidden = op("Where", np.arange(site.tokens)[None] == middle, -np.inf, score)
        if self.variant == scores.REFERENCE:
            rest = op("Slice", score, np.array([1]), np.array([2**31]), np.array([0]))
            hidden = op(
                "Concat", op("Slice", hidden, np.array([0]), np.array([1]), np.array([0])), rest, axis=0
            )
        chosen = op("TokenSelect", hidden, keep=patches, protect=0, order=steps.ORDERS[steps.BY_POSITION])
        half = patches // 2
        parts = [steps.cut(op, chosen, 0, half)] if half else []
        return op("Concat", *parts, center, steps.cut(op, chosen, half, patches), axis=1)
