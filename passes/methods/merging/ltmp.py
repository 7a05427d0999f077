"""LTMP: merge the most similar tokens and prune the least attended, in fixed numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps


@dataclass(frozen=True)
class LTMP(Method):
    """Merge pairs as ToMe does, then drop the tokens that receive the least attention from all queries.

    A merged token is as important as the most important of its members; protected tokens always stay. Output
    order: that of the release with thresholds, ToMe's, less the tokens dropped.
    Options: r_prune: how many of the tokens that leave are pruned rather than merged, -1 for half (rounded
    down); first: merge, or prune (then pairs are matched among tokens ranked by descending importance);
    order: position, or score (descending importance at the end, as the release with fixed numbers has it; with first=prune
    the order is that of matching either way).
    """

    name: ClassVar[str] = "ltmp"
    summary: ClassVar[str] = "merge the most similar pairs, then prune the least attended tokens"
    paper: ClassVar[str] = (
        "Bonnaerens and Dambre, Learned Thresholds Token Merging and Pruning for Vision Transformers, TMLR 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("LTMP",)
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "fixed numbers of merged and of pruned tokens in place of learned thresholds on similarity and importance"
    )

    r_prune: int = -1
    first: str = "merge"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "first", self.first, ("merge", "prune"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if self.r_prune < -1:
            raise MethodError(
                f"option r_prune={self.r_prune} of method {self.name!r}: expected a number of tokens, or -1 for half"
            )

    def pruned(self, removed: int) -> int:
        """How many of the tokens that leave are pruned."""
        return removed // 2 if self.r_prune < 0 else min(self.r_prune, removed)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        prune = self.pruned(site.removed)
        if prune == site.removed:
            index = op(
                "TokenSelect",
                taps.received_attention(),
                keep=site.keep,
                protect=site.protect,
                order=steps.ORDERS[self.order],
            )
            return steps.pruned(op, taps, site, index)
        if self.first == "prune":
            return self._prune_then_merge(op, taps, site, site.tokens - prune)
        return self._merge_then_prune(op, taps, site, site.keep + prune)

    def fewest(self, tokens: int, protect: int) -> int:
        def possible(removed: int) -> bool:
            pruned = self.pruned(removed)
            there = tokens - protect - (pruned if self.first == "prune" else 0)
            return removed - pruned <= there // 2

        most = tokens - protect - 1
        return tokens - next(removed for removed in range(most, -1, -1) if possible(removed))

    def _merge_then_prune(self, op: Ops, taps: Taps, site: Site, merged: int) -> Reduction:
        between = replace(site, keep=merged)
        pairs = bipartite.match_halves(op, taps.metric(), between)
        reduction = bipartite.merged(op, taps, between, pairs)
        if merged == site.keep and self.order == steps.BY_POSITION:
            return reduction
        importance = bipartite.gathered(op, taps.received_attention(), pairs, largest=True)
        index = op(
            "TokenSelect",
            importance,
            keep=site.keep,
            protect=site.protect,
            order=steps.ORDERS[self.order],
        )
        goes = steps.kept_map(op, taps.tokens, index, site.keep, replace(site, tokens=merged))
        return Reduction(
            steps.gather(op, reduction.tokens, index),
            steps.gather(op, reduction.size, index),
            op("GatherElements", pairs.keep, index, axis=1),
            op("GatherElements", goes, reduction.assign, axis=1),
        )

    def _prune_then_merge(self, op: Ops, taps: Taps, site: Site, survive: int) -> Reduction:
        importance: Value = taps.received_attention()
        rank = op("TokenSelect", importance, keep=survive, protect=site.protect, order=1)
        metric = steps.gather(op, taps.metric(), rank)
        pairs = bipartite.match_halves(op, metric, replace(site, tokens=survive)).behind(op, rank)
        return bipartite.merged(op, taps, site, pairs)
