"""ToFu: ToMe's matching; early blocks prune the matched tokens, late ones average them keeping the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps

LEAST_NORM = 1e-20


@dataclass(frozen=True)
class ToFu(Method):
    """Match as ToMe does, then drop the sources or fuse each group into its mean, scaled to its largest norm.

    The fused token is m max_i |x_i| / |m|, m the plain mean of the group; 0/0 -> 0. Output order as ToMe's. Sizes are
    counted but weigh nothing.
    Options: strategy: prune, merge, or auto (prune up to the middle block, merge behind it); variant:
    reference divides by the norm of the destination before merging instead of |m|.
    """

    name: ClassVar[str] = "tofu"
    summary: ClassVar[str] = (
        "prune matched tokens in early blocks, average them without loss of norm in late ones"
    )
    paper: ClassVar[str] = (
        "Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token Merging, WACV 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "independent implementation"
    systems: ClassVar[tuple[str, ...]] = ("ToFu",)
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "public implementations scale by the norm of the destination before merging (variant=reference); "
        "the paper keeps the largest norm (variant=paper)"
    )

    strategy: str = "auto"
    variant: str = "paper"

    def __post_init__(self) -> None:
        steps.choice(self.name, "strategy", self.strategy, ("auto", "prune", "merge"))
        steps.choice(self.name, "variant", self.variant, ("paper", "reference"))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        pairs = bipartite.match_halves(op, taps.metric(), site)
        early = site.block <= site.blocks // 2 if self.strategy == "auto" else self.strategy == "prune"
        if early:
            return steps.pruned(op, taps, site, pairs.keep)
        return self._fused(op, taps, site, pairs)

    def _fused(self, op: Ops, taps: Taps, site: Site, pairs: bipartite.Pairs) -> Reduction:
        wide, weight = steps.float_tokens(op, taps), bipartite.counted_once(op, taps, site)
        mean, count = op("TokenCombine", wide, weight, pairs.keep, pairs.source, pairs.slot)
        factor = self._factor(op, wide, weight, mean, count, pairs)
        size = bipartite.total(op, steps.sizes(op, taps, site), pairs)
        assign = bipartite.went(op, taps.tokens, pairs, site.keep, site)
        return Reduction(op("CastLike", op("Mul", mean, factor), taps.tokens), size, pairs.keep, assign)

    def _factor(
        self, op: Ops, wide: Value, weight: Value, mean: Value, count: Value, pairs: bipartite.Pairs
    ) -> Value:
        """Largest length of each group over that of its mean [B,K,1]; 1 where fewer than two tokens met.

        Lengths are taken of the tokens that meet alone: R sources, and R times a survivor.
        """
        target = op("GatherElements", pairs.keep, pairs.slot, axis=1)
        near, moved = (steps.gather(op, wide, place) for place in (target, pairs.source))
        own, joining = (
            op("Mul", steps.lengths(op, rows), steps.gather(op, weight, place))
            for rows, place in ((near, target), (moved, pairs.source))
        )
        row = op("Transpose", joining, perm=[0, 2, 1])
        most = op("ReduceMax", op("Where", bipartite.together(op, pairs), row, 0.0), axes=[2], keepdims=1)
        divisor = steps.lengths(
            op, near if self.variant == "reference" else steps.gather(op, mean, pairs.slot)
        )
        factor = op("Div", op("Max", own, most), op("Max", divisor, LEAST_NORM))
        met = op("Greater", steps.gather(op, count, pairs.slot), 1.0)
        known = op("Squeeze", op("Where", met, factor, 1.0), steps.LAST)
        ones = op("Squeeze", op("Add", op("Mul", count, 0.0), 1.0), steps.LAST)
        return op("Unsqueeze", op("ScatterElements", ones, pairs.slot, known, axis=1), steps.LAST)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2
