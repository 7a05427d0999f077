"""MSViT: a trained gate decides which squares of tokens stay fine; the others become one coarse token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, scores, steps, windows
from tokenrt.passes.methods.parts.weights import Trained

SQUARE = 2
SAVED = SQUARE * SQUARE - 1
"""Tokens saved by each coarse square."""


@dataclass(frozen=True)
class MSViT(Trained):
    """Merge the S squares of 2 x 2 tokens that the gate least wants fine into one coarse token each.

    The gate is linear, GELU, linear on the mean of a square's tokens; each coarse square saves three tokens,
    K = N - 3S. Output order: protected, fine tokens ascending, coarse squares ascending, which stand at the place of
    their first token.
    The paper decides before the network, where gate and coarse token see pixels; here both see embedded tokens and
    the coarse token is their mean by size. Use it at the first site, where the grid is whole.
    """

    name: ClassVar[str] = "msvit"
    summary: ClassVar[str] = "keep fine tokens only in the squares that a trained gate selects"
    paper: ClassVar[str] = (
        "Havtorn et al., MSViT: Dynamic Mixed-Scale Tokenization for Vision Transformers, ICCVW 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("MSViT",)
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the (N - K) / 3 squares with the lowest gate are coarse, not those below a threshold"
    )
    needs: ClassVar[Mapping[str, str]] = scores.GATE
    deviations: ClassVar[str] = (
        "gate and coarse token act on embedded tokens inside the network, in the paper on pixels before it"
    )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        table = windows.windows(self, site, SQUARE, SQUARE)
        coarse, rest = divmod(site.removed, SAVED)
        if rest or coarse > len(table):
            raise windows.misfit(self, table, site)
        tokens = op("Gather", steps.float_tokens(op, taps), table.ravel(), axis=1)
        squares = op("Reshape", tokens, np.array([0, len(table), SQUARE * SQUARE, -1]))
        means = op("Mul", op("ReduceSum", squares, np.array([2]), keepdims=0), 1 / (SQUARE * SQUARE))
        score = op("Neg", scores.gate(op, self, site, means))
        chosen = op("TokenSelect", score, keep=coarse, protect=0, order=steps.ORDERS[steps.BY_POSITION])
        pairs = windows.shared(
            op, taps.tokens, table, chosen, coarse, site, place=0, behind=site.keep - coarse
        )
        return bipartite.merged(op, taps, site, pairs)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // (SAVED + 1) * SAVED
