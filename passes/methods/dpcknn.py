"""DPC-KNN: merge tokens around density peaks, as TCFormer and TokenReduction do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods import _centers, _clusters, _layers, _steps
from tokenrt.passes.methods._weights import Trained
from tokenrt.passes.methods.contract import Evidence, Family, Ops, Reduction, Site, Taps, Value


@dataclass(frozen=True)
class DPCKNN(Trained):
    """Each token joins the nearest of K centres, the densest tokens far from denser ones; clusters become their mean.

    Tokens x are compared by |x_i - x_j| / sqrt(C). Density is exp(-m), m the mean squared distance to the
    nearest tokens, the token itself among them; a centre scores density times the distance to the nearest denser
    token. Equal densities: the smaller index is the denser, where the releases add noise. Members weigh by size,
    and with weights given also by exp(score_weight x + score_bias).
    Options: neighbours; order of the outputs: position of the centre, or score (descending, as published); by_size:
    members weigh by size (false: alike, as published, which only matters from the second reduction on); weights.
    """

    name: ClassVar[str] = "dpcknn"
    family: ClassVar[Family] = "clustering"
    summary: ClassVar[str] = "merge each token into the nearest density peak of the tokens"
    paper: ClassVar[str] = (
        "Zeng et al., TCFormer, CVPR 2022; Haurum et al., Which Tokens to Use?, ICCVW 2023 (DPC-KNN)"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    optional: ClassVar[Mapping[str, str]] = {"score_weight": "1,C", "score_bias": "1"}
    deviations: ClassVar[str] = (
        "the releases add uniform noise of 1e-6 to the density and 1e-6 to the sum of the weights; here ties "
        "go by index and means are exact"
    )

    neighbours: int = 5
    order: str = _steps.BY_POSITION
    by_size: bool = True

    def __post_init__(self) -> None:
        _steps.choice(self.name, "order", self.order, tuple(_steps.ORDERS))
        _steps.at_least(self.name, "neighbours", self.neighbours, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        center, assign = _centers.peaks(op, taps, site, self.neighbours)
        if self.order == _steps.BY_POSITION:
            _, center, assign = _clusters.by_position(op, center, assign, _clusters.outputs(site))
        return _clusters.merged(op, taps, site, center, assign, self._weight(op, taps, site))

    def _weight(self, op: Ops, taps: Taps, site: Site) -> Value | None:
        """Return the weight [B,N,1] of each token in its mean; None where that is its size."""
        size = taps.size if self.by_size else None
        if self.weights is None:
            return size if self.by_size else _steps.ones(op, taps.tokens, site)
        matrix, bias = self.tensor("score_weight", site), self.tensor("score_bias", site)
        self.check("score_weight", matrix, (1, site.channels or matrix.shape[1]))
        self.check("score_bias", bias, (1,))
        tokens = op("Cast", taps.tokens, to=_steps.FLOAT)
        score = _clusters.finite(op, _layers.linear(op, tokens, matrix, bias))
        # Means do not change when all weights shrink alike, and the largest weight never overflows.
        top = op("ReduceMax", _steps.free(op, score, site), axes=[1], keepdims=1)
        weight = op("Exp", op("Sub", score, top))
        return weight if size is None else op("Mul", weight, size)
