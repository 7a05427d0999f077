"""DiffRate: sort by class attention, prune the tail, merge what is left of it into its nearest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps

LEAST_SIZE = 1e-6
"""Floor of a size: opposite tokens take size away, and attention needs its logarithm."""


@dataclass(frozen=True)
class DiffRate(Method):
    """Keep the best P of N tokens by class attention, then merge ranks K .. P-1 into their nearest of ranks 0 .. K-1.

    Tokens are compared by themselves, not by keys; protected ones receive nothing. The merged token is the
    plain mean; its size grows by size times cosine of each token that joins.
    Output order: protected, then descending score, as published.
    Options: prune_kept: how many tokens survive pruning, protected ones included: half (of those that leave
    are pruned), a number, or one number a block separated by commas (rates found by search); score: class,
    received or auto; variant: reference lets a size fall to zero and below, whose logarithm attention cannot take.
    """

    name: ClassVar[str] = "diffrate"
    summary: ClassVar[str] = "prune the least attended tokens, merge the next ones into those most alike"
    paper: ClassVar[str] = (
        "Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision Transformers, ICCV 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("DiffRate",)
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        f"paper: sizes stay positive, {LEAST_SIZE} is their floor; reference: at inference tokens that join against their "
        "direction may take a size to zero and below"
    )

    prune_kept: str = "half"
    score: str = "auto"
    variant: str = "paper"

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "variant", self.variant, ("paper", "reference"))
        if self.prune_kept != "half" and not all(
            part.strip().isdigit() for part in self.prune_kept.split(",")
        ):
            raise MethodError(
                f"option prune_kept={self.prune_kept} of method {self.name!r}: expected half, a number of tokens, or one "
                "number a block separated by commas"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = steps.importance(op, taps, site, self.score)
        survive = self._survivors(site)
        rank = op("TokenSelect", score, keep=survive, protect=site.protect, order=1)
        if survive == site.keep:
            return steps.pruned(op, taps, site, rank)
        sources = range(site.keep, survive)
        value, ranks = bipartite.match(
            op,
            steps.gather(op, steps.float_tokens(op, taps), rank),
            range(site.protect),
            sources,
            range(site.protect, site.keep),
            len(sources),
        )
        pairs = ranks.behind(op, rank)
        mean = bipartite.merged(op, taps, site, pairs, bipartite.counted_once(op, taps, site))
        cosine = op("GatherElements", value, op("Sub", ranks.source, site.keep), axis=1)
        size = self._sizes(op, steps.sizes(op, taps, site), cosine, pairs)
        return Reduction(mean.tokens, size, mean.position, mean.assign)

    def rated(self, survivors: Sequence[int]) -> DiffRate:
        return replace(self, prune_kept=",".join(map(str, survivors))) if self.prune_kept == "half" else self

    def _survivors(self, site: Site) -> int:
        """P, at least K and at most N."""
        if self.prune_kept == "half":
            return site.tokens - site.removed // 2
        rates = [int(part) for part in self.prune_kept.split(",")]
        if len(rates) not in (1, site.blocks):
            raise MethodError(
                f"option prune_kept of method {self.name!r} has {len(rates)} numbers, and the model {site.blocks} blocks; give "
                "one number, or one a block"
            )
        return min(max(rates[0] if len(rates) == 1 else rates[site.block], site.keep), site.tokens)

    def _sizes(self, op: Ops, size: Value, cosine: Value, pairs: bipartite.Pairs) -> Value:
        """Sizes [B,K,1]: a padding destination may stay 0, in the paper's form any other stays positive."""
        flat = op("Squeeze", size, steps.LAST)
        joining = op("Mul", op("GatherElements", flat, pairs.source, axis=1), cosine)
        scaled = op("ScatterElements", flat, pairs.source, joining, axis=1)
        total = bipartite.gathered(op, scaled, pairs)
        if self.variant == "paper":
            total = op("Max", total, op("Min", op("GatherElements", flat, pairs.keep, axis=1), LEAST_SIZE))
        return op("Unsqueeze", total, np.array([-1]))
