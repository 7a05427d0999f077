"""PiToMe: tokens with many similar ones (high energy) merge, the isolated ones are protected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, scores, steps

FIRST = 1e30
"""Energy of padding: above every other, so that it merges first, with other padding."""

MODES = ("auto", "pitome", "pitome_bsm", "bsm", "text")


def removed(tokens: int, ratio: float) -> int:
    """R of the published ratio form, T - T * ratio rounded down, in double arithmetic.

    T counts the unprotected tokens; the mode bsm alone counts the class token too, as published.
    """
    return math.floor(tokens - tokens * ratio)


@dataclass(frozen=True)
class PiToMe(Method):
    """Rank the unprotected tokens by energy, the mean over all j of ELU(cos(i,j) - margin), and merge the top.

    Every mode takes the size-weighted mean, and its output order is part of the method:
    pitome: of the 2R tokens of highest energy, ranks 0, 2, .. join their most similar of ranks 1, 3, ..; output: protected, the
    others by descending energy, destinations. pitome_bsm: of all ranks the even ones are sources, the odd ones destinations,
    and the R most similar sources merge; output: protected, unmerged sources by descending similarity, destinations.
    bsm: ToMe. text: energy with a Gaussian of width 1 - margin, the R highest ranks join the R behind them.
    auto: pitome_bsm in the first half of the blocks, pitome in the second.
    Options: variant: whether attention counts a merged token by its size (paper) or as one (reference); mode; margin and
    margin_drop: the margin in block l of L is margin - margin_drop * l / L; alpha of the ELU.
    """

    name: ClassVar[str] = "pitome"
    summary: ClassVar[str] = "merge tokens that resemble many others, protect the isolated ones"
    paper: ClassVar[str] = (
        "Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("PiToMe",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "variant=reference: vision attention never sees the sizes, as released; variant=paper: it is proportional"
    )

    variant: str = scores.PAPER
    mode: str = "auto"
    margin: float = 0.75
    margin_drop: float = 0.75
    alpha: float = 1.0

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.choice(self.name, "mode", self.mode, MODES)
        if self.mode == "text" and max(self.margin, self.margin - self.margin_drop) >= 1:
            raise MethodError(
                f"option margin={self.margin} of method {self.name!r}: mode=text needs a margin below 1, its Gaussian "
                "has the width 1 - margin"
            )

    @property
    def proportional(self) -> bool:
        return self.variant == scores.PAPER

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        mode = self.mode
        if mode == "auto":
            mode = "pitome_bsm" if 2 * site.block < site.blocks else "pitome"
        metric = taps.metric()
        if mode == "bsm":
            return bipartite.merged(op, taps, site, bipartite.match_halves(op, metric, site))
        unit = op("LpNormalization", metric, axis=2, p=2)
        energy = self._energy(op, taps, unit, site, gaussian=mode == "text")
        rank = op("TokenSelect", energy, keep=site.tokens, protect=site.protect, order=1)
        first, end = site.protect, site.tokens
        if mode == "pitome_bsm":
            sources, destinations = [*range(first, end, 2)], [*range(first + 1, end, 2)]
            ranked = steps.gather(op, metric, rank)
            _, pairs = bipartite.match(
                op, ranked, range(first), sources, destinations, site.removed, by_value=True
            )
            return bipartite.merged(op, taps, site, pairs.behind(op, rank))
        middle, end = first + site.removed, first + 2 * site.removed
        sources, destinations = [*range(first, end, 2)], [*range(first + 1, end, 2)]
        if mode == "text":
            sources, destinations = [*range(first, middle)], [*range(middle, end)]
        others = [*range(first), *range(end, site.tokens)]
        pairs = bipartite.every_source(op, unit, rank, others, sources, destinations)
        return bipartite.merged(op, taps, site, pairs)

    def _energy(self, op: Ops, taps: Taps, unit: Value, site: Site, *, gaussian: bool) -> Value:
        """Energy [B,N] over the unprotected tokens that are no padding; that of protected ones is never read."""
        margin = self.margin - self.margin_drop * site.block / site.blocks
        free = steps.cut(op, unit, site.protect, site.tokens)
        cosine = op("MatMul", unit, op("Transpose", free, perm=[0, 2, 1]))
        if gaussian:
            apart = op("Mul", op("Sub", 1.0, cosine), 1 / (1 - margin))
            peak = 1 / ((1 - margin) * math.sqrt(2 * math.pi))
            close = op("Mul", op("Exp", op("Mul", op("Mul", apart, apart), -0.5)), peak)
        else:
            close = op("Elu", op("Sub", cosine, margin), alpha=self.alpha)
        count = site.tokens - site.protect
        if not taps.padded:
            # As a product with a constant column, which ONNX Runtime runs faster than a reduction.
            energy = op("MatMul", close, np.full((count, 1), 1 / count, np.float32))
            return op("Squeeze", energy, steps.LAST)
        shown = op("Cast", op("Greater", taps.size, 0.0), to=steps.FLOAT)
        valid = steps.cut(op, shown, site.protect, site.tokens)
        total = op("Max", op("ReduceSum", valid, np.array([1]), keepdims=1), 1.0)
        energy = op("Div", op("MatMul", close, valid), total)
        return op("Squeeze", op("Where", op("Greater", taps.size, 0.0), energy, FIRST), steps.LAST)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2
