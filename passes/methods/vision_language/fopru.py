"""FoPru: keep the patches, or the whole rows of the grid, that attention says matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import quotas, scores, steps

RANK, ROW = "rank", "row"


@dataclass(frozen=True)
class FoPru(Method):
    """Keep the K best tokens by attention (rank), or the tokens of the grid's best rows (row), in ascending position.

    A row counts by the sum over its tokens. floor(K / W) whole rows of W tokens stay, and where K is not made of rows, the best
    of the other tokens. Published at the features, with the attention of the last block but one (`--tap-layer -2`); whether
    all queries give it or the class token, the paper does not settle. Padding leaves first.
    Options: form: rank or row (needs the grid); score: received, class or auto (class where there is a class token).
    """

    name: ClassVar[str] = "fopru"
    summary: ClassVar[str] = "keep the patches, or whole rows of patches, with the most attention"
    paper: ClassVar[str] = (
        "Jiang et al., FoPru: Focal Pruning for Efficient Large Vision-Language Models, arXiv 2411.14164"
    )
    reads: ClassVar[tuple[str, ...]] = ("received_attention", "class_attention", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("FoPru",)

    form: str = RANK
    score: str = "received"

    def __post_init__(self) -> None:
        steps.choice(self.name, "form", self.form, (RANK, ROW))
        steps.choice(self.name, "score", self.score, ("received", "class", "auto"))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = steps.importance(op, taps, site, self.score)
        if self.form == RANK:
            return scores.pruned(op, taps, site, score, steps.BY_POSITION)
        return steps.pruned(
            op, taps, site, quotas.select(op, taps, site, score, self._rows(op, taps, site, score))
        )

    def _rows(self, op: Ops, taps: Taps, site: Site, score: Value) -> Value:
        """Which unprotected tokens are in the best rows: [B,T] bool."""
        if site.grid is None:
            raise steps.no_grid(self.name, site)
        tokens, width = site.tokens - site.protect, site.grid[-1]
        there = scores.present(op, taps)
        known = scores.numbers(op, score)
        known = steps.free(op, known if there is None else op("Mul", known, there), site)
        total = op(
            "ReduceSum", op("Reshape", known, np.array([-1, tokens // width, width])), steps.LAST, keepdims=0
        )
        whole = (site.keep - site.protect) // width
        best = op("Less", quotas.ranks(op, total, tokens // width), float(whole))
        return op("Gather", best, np.repeat(np.arange(tokens // width), width), axis=1)
