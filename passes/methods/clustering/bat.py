"""BAT: merge matched pairs among attentive tokens, and cluster the inattentive ones around density peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import centers, clusters, steps


@dataclass(frozen=True)
class BAT(Method):
    """Attention splits the tokens in two groups; in each, tokens become means weighted by attention.

    Of the M outputs, D = round(diverse M), at least 1, come from the inattentive group: density peaks of it, which
    each inattentive token joins the nearest of. Of the T - M tokens that go, R = floor(matched (T - M)) are attentive:
    the R most similar of its even members merge into odd ones, compared by mean key. The attentive group has
    M - D + R tokens, those with the best scores. Means are weighted by attention times size; sizes add up. Outputs
    are in ascending position.
    Options: score: class, received or auto; diverse; matched; neighbours, those that make up the density.
    """

    name: ClassVar[str] = "bat"
    summary: ClassVar[str] = "match attentive tokens, cluster inattentive ones around density peaks"
    paper: ClassVar[str] = "Long et al., Beyond Attentive Tokens, CVPR 2023"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "metric", "class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("BAT (importance and diversity)",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "no code is public: the groups and their weighting are as published; distance, matching, the shares of the "
        "groups and weighting by size are this project's"
    )

    score: str = "auto"
    diverse: float = 0.25
    matched: float = 0.1
    neighbours: int = 5

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        for option in ("diverse", "matched"):
            if not 0 <= getattr(self, option) <= 1:
                raise MethodError(
                    f"option {option}={getattr(self, option)} of method {self.name!r}: expected 0 to 1"
                )
        steps.at_least(self.name, "neighbours", self.neighbours, 1)

    def counts(self, site: Site) -> tuple[int, int, int]:
        """Return how many tokens are attentive, how many of those merge, and how many peaks there are."""
        outputs = clusters.outputs(site)
        peaks = min(outputs, max(1, round(self.diverse * outputs)))
        merging = min(int(self.matched * site.removed), outputs - peaks)
        return outputs - peaks + merging, merging, peaks

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        attentive, merging, peaks = self.counts(site)
        count = site.tokens - site.protect
        score = clusters.finite(op, steps.importance(op, taps, site, self.score))
        mine = steps.free(op, score, site)
        leader = op("Expand", op.constant(np.arange(count)[None]), op("Shape", mine))
        low = leader
        if attentive:
            high = op("TokenSelect", mine, keep=attentive, protect=0, order=0)
            low = _others(op, mine, high, attentive, count)
        if merging:
            metric = steps.gather(op, steps.free(op, taps.metric(), site), high)
            leader = _matched(op, metric, high, leader, attentive, merging)
        points = clusters.aside(op, centers.scaled(op, taps, site), taps, site)
        neighbours = min(self.neighbours, count - attentive)
        center, joined = op("TokenPeaks", steps.gather(op, points, low), keep=peaks, neighbours=neighbours)
        heads = op("GatherElements", low, op("GatherElements", center, joined, axis=1), axis=1)
        leader = op("ScatterElements", leader, low, heads, axis=1)
        weight = op("Unsqueeze", score, clusters.LAST)
        if taps.size is not None:
            weight = op("Mul", weight, taps.size)
        center, assign = _numbered(op, leader, count, clusters.outputs(site))
        return clusters.merged(op, taps, site, center, assign, weight)


def _others(op: Ops, score: Value, chosen: Value, taken: int, count: int) -> Value:
    """Return the positions that are not in `chosen` [B,taken], ascending: [B,count-taken]."""
    everyone = op("Expand", op.constant(np.ones((1, 1), np.float32)), op("Shape", score))
    nobody = op("Expand", op.constant(np.zeros((1, 1), np.float32)), op("Shape", chosen))
    left = op("ScatterElements", everyone, chosen, nobody, axis=1)
    return op("TokenSelect", left, keep=count - taken, protect=0, order=0)


def _matched(op: Ops, metric: Value, group: Value, leader: Value, count: int, merging: int) -> Value:
    """Let the `merging` most similar even members of the group [B,count] follow odd ones."""
    _, keep, source, destination = op(
        "TokenMatch",
        metric,
        sources=list(range(0, count, 2)),
        destinations=list(range(1, count, 2)),
        others=[],
        keep=count - merging,
        remove=merging,
        order=0,
    )
    near = op("GatherElements", keep, destination, axis=1)
    followers, leaders = (op("GatherElements", group, index, axis=1) for index in (source, near))
    return op("ScatterElements", leader, followers, leaders, axis=1)


def _numbered(op: Ops, leader: Value, count: int, outputs: int) -> tuple[Value, Value]:
    """Return the tokens that lead themselves, ascending [B,M], and each token's place among them [B,T]."""
    leads = op("Cast", op("Equal", leader, np.arange(count)[None]), to=steps.FLOAT)
    center = op("TokenSelect", leads, keep=outputs, protect=0, order=0)
    slots = op("Expand", op.constant(np.arange(outputs)[None]), op("Shape", center))
    place = op("ScatterElements", leader, center, slots, axis=1)
    return center, op("GatherElements", place, leader, axis=1)
