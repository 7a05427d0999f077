"""DPC-KNN: merge tokens around density peaks, as TCFormer and TokenReduction do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import centers, clusters, layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

ADDED = 1e-6
"""What the releases add to the weights of each cluster before they divide by their sum."""


@dataclass(frozen=True)
class DPCKNN(Trained):
    """Each token joins the nearest of K centres, the densest tokens far from denser ones; clusters become their mean.

    Tokens x are compared by |x_i - x_j| / sqrt(C). Density is exp(-m), m the mean squared distance to the
    nearest tokens, the token itself among them; a centre scores density times the distance to the nearest denser
    token. Equal densities: the smaller index is the denser, where the releases add noise. Members weigh by size,
    and with weights given also by exp(score_weight x + score_bias).
    Options: variant; neighbours; order of the outputs: position of the centre, or score (descending, as published);
    by_size: members weigh by size (false: alike, as published, which only matters from the second reduction on); weights.
    """

    name: ClassVar[str] = "dpcknn"
    summary: ClassVar[str] = "merge each token into the nearest density peak of the tokens"
    paper: ClassVar[str] = (
        "Zeng et al., TCFormer, CVPR 2022; Haurum et al., Which Tokens to Use?, ICCVW 2023 (DPC-KNN)"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    merges: ClassVar[bool] = True
    optional: ClassVar[Mapping[str, str]] = {"score_weight": "1,C", "score_bias": "1"}
    deviations: ClassVar[str] = (
        f"variant=reference adds {ADDED:g} to the sum of a cluster's weights, as the releases, so that its mean falls short; "
        "variant=paper is exact. The noise of 1e-6 that the releases add to densities is left out: ties go by index"
    )

    variant: str = scores.PAPER
    neighbours: int = 5
    order: str = steps.BY_POSITION
    by_size: bool = True

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.at_least(self.name, "neighbours", self.neighbours, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        center, assign = centers.peaks(op, taps, site, self.neighbours)
        if self.order == steps.BY_POSITION:
            _, center, assign = clusters.by_position(op, center, assign, clusters.outputs(site))
        weight, top = self._weight(op, taps, site)
        made = clusters.merged(op, taps, site, center, assign, weight)
        return made if self.variant == scores.PAPER else self._short(op, taps, site, made, weight, top)

    def _short(
        self, op: Ops, taps: Taps, site: Site, made: Reduction, weight: Value | None, top: Value | None
    ) -> Reduction:
        """The clusters with ADDED in the sums by which their means were divided; protected tokens as they are."""
        own = steps.sizes(op, taps, site) if weight is None else weight
        added = ADDED if top is None else op("Mul", op("Exp", op("Neg", top)), ADDED)
        total = clusters.collected(op, own, made.assign, site.keep)
        share = op("Div", total, op("Add", total, added))
        free = np.arange(site.keep)[None, :, None] >= site.protect
        scaled = op("Mul", op("Cast", made.tokens, to=steps.FLOAT), op("Where", free, share, 1.0))
        return replace(made, tokens=op("CastLike", scaled, taps.tokens))

    def _weight(self, op: Ops, taps: Taps, site: Site) -> tuple[Value | None, Value | None]:
        """Return the weight [B,N,1] of each token in its mean, None where that is its size, and the largest score.

        Weights are divided by the exponential of that score; it is None where there are no scores.
        """
        size = taps.size if self.by_size else None
        if self.weights is None:
            return size if self.by_size else steps.ones(op, taps.tokens, site), None
        matrix, bias = self.tensor("score_weight", site), self.tensor("score_bias", site)
        self.check("score_weight", matrix, (1, site.channels or matrix.shape[1]))
        self.check("score_bias", bias, (1,))
        tokens = op("Cast", taps.tokens, to=steps.FLOAT)
        score = clusters.finite(op, layers.linear(op, tokens, matrix, bias))
        # Means do not change when all weights shrink alike, and the largest weight never overflows.
        top = op("ReduceMax", steps.free(op, score, site), axes=[1], keepdims=1)
        weight = op("Exp", op("Sub", score, top))
        return weight if size is None else op("Mul", weight, size), top
