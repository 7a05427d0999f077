"""K-Medoids: keep the medoids of K clusters of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import centers, clusters, steps

REACH = {"paper": "Min", "reference": "Max"}


@dataclass(frozen=True)
class KMedoids(Method):
    """Keep the medoids of K clusters, unchanged; each token is mapped to its nearest medoid.

    Medoids start at the tokens of largest weight and move a fixed number of times: assign each token to the nearest
    by Euclidean distance (the smaller slot wins), then take the cheapest member of each cluster (the smaller index
    wins). Sizes add up over clusters.
    Options: variant: paper, the member with the least weighted distance to the members of its cluster; reference,
    the member with the least product of its own weight and its distance to all tokens, and token 0 for an empty
    cluster; iterations; weight: received (attention of all tokens, as published), class, auto, or equal (start at
    unprotected token number `start`, then the token farthest from the nearest medoid, in the reference from any
    medoid; one choice after the other is written out); order of the outputs: position, or score (slots as they
    started: descending weight, as published).
    """

    name: ClassVar[str] = "kmedoids"
    summary: ClassVar[str] = "keep the medoids of K clusters of tokens, started at the most attended"
    paper: ClassVar[str] = "Haurum et al., Which Tokens to Use?, ICCVW 2023 (K-Medoids)"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "received_attention", "class_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    deviations: ClassVar[str] = (
        "variant=reference moves to the member with the least own weight times distance to all tokens, as the release; "
        "variant=paper sums weighted distances over the cluster"
    )

    variant: str = "paper"
    iterations: int = 3
    weight: str = "received"
    start: int = 0
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, tuple(REACH))
        steps.choice(self.name, "weight", self.weight, centers.WEIGHTS)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.at_least(self.name, "iterations", self.iterations, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count = site.tokens - site.protect
        points, _ = clusters.points(op, clusters.plain(op, taps, site), count)
        weight = centers.weights(op, taps, site, self.weight)
        start = self._start(op, points, weight, site)
        if self.variant == "paper":
            medoid, assign = op("TokenMedoids", points, weight, start, rounds=self.iterations, power=1)
        else:
            distance = _distances(op, points, count)
            medoid = self._moved(op, distance, weight, start, taps, site)
            assign = centers.nearest(op, distance, medoid)
        return selected(op, taps, site, medoid, assign, self.order)

    def _start(self, op: Ops, points: Value, weight: Value, site: Site) -> Value:
        if self.weight != "equal":
            return centers.heaviest(op, weight, site)
        count = site.tokens - site.protect
        if not 0 <= self.start < count:
            raise MethodError(
                f"option start={self.start} of method {self.name!r}: expected 0 to {count - 1}, an unprotected token"
            )
        reach, distance = REACH[self.variant], _distances(op, points, count)
        return centers.spread_out(op, distance, count, clusters.outputs(site), self.start, reach)

    def _moved(self, op: Ops, distance: Value, weight: Value, medoid: Value, taps: Taps, site: Site) -> Value:
        """The rule of the release: what a token costs does not depend on its cluster."""
        shown = clusters.real(op, taps, site)
        counted = distance if shown is None else op("Where", shown, distance, 0.0)
        cost = op("Mul", weight, op("ReduceSum", counted, clusters.LAST, keepdims=0))
        if shown is not None:
            cost = op("Where", op("Squeeze", shown, np.array([1])), cost, clusters.FAR)
        for _ in range(self.iterations):
            assign = centers.nearest(op, distance, medoid)
            medoid = centers.cheapest(op, cost, assign, clusters.outputs(site))
        return medoid


def _distances(op: Ops, points: Value, count: int) -> Value:
    return op("Sqrt", clusters.squared_distances(op, points, count))


def selected(op: Ops, taps: Taps, site: Site, medoid: Value, assign: Value, order: str) -> Reduction:
    """Keep the medoids [B,M]; sizes add up over the tokens assigned to each by assign [B,T]."""
    if order == steps.BY_POSITION:
        _, medoid, assign = clusters.by_position(op, medoid, assign, clusters.outputs(site))
    keep, assign = clusters.whole(op, taps, site, medoid), clusters.whole(op, taps, site, assign)
    total = clusters.collected(op, steps.sizes(op, taps, site), assign, site.keep)
    return Reduction(steps.gather(op, taps.tokens, keep), total, keep, assign)
