"""Token Pooling: replace the tokens by the centres of a weighted clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.clustering.kmedoids import selected
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import centers, clusters, steps

KINDS = ("means", "medoids")


@dataclass(frozen=True)
class TokenPooling(Method):
    """Lower sum_j w_j min_k |x_j - c_k|^2 over K centres by a fixed number of rounds, and output the centres.

    Centres start at the tokens of largest weight w. Each round assigns every token to its nearest centre (the
    smaller slot wins) and moves each centre to the weighted mean of its cluster, or, as medoid, to the member with
    the least weighted squared distance to the others (the smaller index wins). A cluster without weight keeps its
    centre. An output stands where its centre started, a medoid where it is; sizes add up over clusters. Numbers that
    are not finite count as 0 in means.
    Options: kind: means or medoids; iterations; weight: received (attention of all tokens, as published), class,
    auto, or equal (the first tokens start); order of the outputs: position, or score (descending weight).
    """

    name: ClassVar[str] = "token_pooling"
    summary: ClassVar[str] = "replace the tokens by centres of K-means or K-medoids, weighted by attention"
    paper: ClassVar[str] = "Marin et al., Token Pooling in Vision Transformers, WACV 2023"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "received_attention", "class_attention")
    evidence: ClassVar[Evidence] = "independent implementation"
    systems: ClassVar[tuple[str, ...]] = ("Token Pooling",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = "the clustering stops after `iterations` rounds, not when it has converged"

    kind: str = "means"
    iterations: int = 3
    weight: str = "received"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "kind", self.kind, KINDS)
        steps.choice(self.name, "weight", self.weight, centers.WEIGHTS)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.at_least(self.name, "iterations", self.iterations, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count = site.tokens - site.protect
        points, mean = clusters.points(op, clusters.plain(op, taps, site), count)
        weight = centers.weights(op, taps, site, self.weight)
        start = centers.heaviest(op, weight, site)
        if self.kind == "medoids":
            medoid, assign = op("TokenMedoids", points, weight, start, rounds=self.iterations, power=2)
            return selected(op, taps, site, medoid, assign, self.order)
        center, assign = op("TokenMeans", points, weight, start, rounds=self.iterations)
        if self.order == steps.BY_POSITION:
            order, start, assign = clusters.by_position(op, start, assign, clusters.outputs(site))
            center = steps.gather(op, center, order)
        pooled = op("CastLike", op("Add", center, mean), taps.tokens)
        assign = clusters.whole(op, taps, site, assign)
        size = clusters.collected(op, steps.sizes(op, taps, site), assign, site.keep)
        position = clusters.whole(op, taps, site, start)
        return Reduction(clusters.ahead(op, taps, site, pooled), size, position, assign)
