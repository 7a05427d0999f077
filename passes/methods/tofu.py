"""ToFu: ToMe's matching; early blocks prune the matched tokens, late ones average them keeping the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods import _bipartite, _steps
from tokenrt.passes.methods.contract import Evidence, Family, Method, Ops, Reduction, Site, Taps, Value

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
    family: ClassVar[Family] = "merging"
    summary: ClassVar[str] = (
        "prune matched tokens in early blocks, average them without loss of norm in late ones"
    )
    paper: ClassVar[str] = (
        "Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token Merging, WACV 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "independent implementation"
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "public implementations scale by the norm of the destination before merging (variant=reference); "
        "the paper keeps the largest norm (variant=paper)"
    )

    strategy: str = "auto"
    variant: str = "paper"

    def __post_init__(self) -> None:
        _steps.choice(self.name, "strategy", self.strategy, ("auto", "prune", "merge"))
        _steps.choice(self.name, "variant", self.variant, ("paper", "reference"))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        pairs = _bipartite.match_halves(op, taps.metric(), site)
        early = site.block <= site.blocks // 2 if self.strategy == "auto" else self.strategy == "prune"
        if early:
            return _steps.pruned(op, taps, site, pairs.keep)
        return self._fused(op, taps, site, pairs)

    def _fused(self, op: Ops, taps: Taps, site: Site, pairs: _bipartite.Pairs) -> Reduction:
        wide, weight = _steps.float_tokens(op, taps), _bipartite.counted_once(op, taps, site)
        mean, count = op("TokenCombine", wide, weight, pairs.keep, pairs.source, pairs.slot)
        norm = op("Squeeze", op("Mul", _norm(op, wide), weight), _steps.LAST)
        largest = op("Unsqueeze", _bipartite.gathered(op, norm, pairs, largest=True), _steps.LAST)
        divisor = _norm(op, _steps.gather(op, wide, pairs.keep) if self.variant == "reference" else mean)
        scaled = op("Mul", mean, op("Div", largest, op("Max", divisor, LEAST_NORM)))
        tokens = op("Where", op("Greater", count, 1.0), scaled, mean)
        size = _steps.sizes(op, taps, site)
        _, total = op("TokenCombine", size, size, pairs.keep, pairs.source, pairs.slot)
        assign = _bipartite.went(op, taps.tokens, pairs, site.keep, site)
        return Reduction(op("CastLike", tokens, taps.tokens), total, pairs.keep, assign)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2


def _norm(op: Ops, tokens: Value) -> Value:
    """Lengths [B,N,1]."""
    return op("Sqrt", op("ReduceSum", op("Mul", tokens, tokens), np.array([-1]), keepdims=1))
