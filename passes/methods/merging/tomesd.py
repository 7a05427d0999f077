"""ToMe for diffusion: one destination per cell of the grid, everything unmerged after the attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Returns, Site, Taps
from tokenrt.passes.methods.parts import bipartite, windows


@dataclass(frozen=True)
class ToMeSD(Method):
    """Match all tokens with one destination in each cell of the grid, its top left token, and take plain means.

    Tokens are compared as they enter the block, before its norm, not by keys; the R most similar sources merge. Output order:
    protected, unmerged sources by descending similarity, destinations ascending. Tokens beyond the last
    complete cell are sources. The published random place of the destination in its cell is left out: it is off for
    odd batches there, and a fixed graph has no dice.
    Options: sx, sy: width and height of a cell.
    """

    name: ClassVar[str] = "tomesd"
    summary: ClassVar[str] = (
        "merge into one token per cell of the grid for the attention alone, then copy back"
    )
    paper: ClassVar[str] = "Bolya and Hoffman, Token Merging for Fast Stable Diffusion, CVPRW 2023"
    reads: ClassVar[tuple[str, ...]] = ("stream", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("ToMe-SD",)
    returns: ClassVar[Returns] = "after-attention"

    sx: int = 2
    sy: int = 2

    def __post_init__(self) -> None:
        if min(self.sx, self.sy) < 1 or self.sx * self.sy < 2:
            raise MethodError(
                f"options sx={self.sx}, sy={self.sy} of method {self.name!r}: expected a cell of at least two tokens"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        destinations = windows.windows(self, site, self.sy, self.sx)[:, 0]
        sources = np.setdiff1d(np.arange(site.protect, site.tokens), destinations)
        if not len(destinations) or site.removed > len(sources):
            raise PlanError(
                f"method {self.name!r} can remove {len(sources) if len(destinations) else 0} of {site.tokens} tokens, "
                f"those that are no destination of a {self.sy} x {self.sx} cell in the grid {site.grid}, got "
                f"{site.removed} to remove; keep more, or use other cells (--set sx=, --set sy=)"
            )
        _, pairs = bipartite.match(
            op,
            taps.stream(),
            range(site.protect),
            sources.tolist(),
            destinations.tolist(),
            site.removed,
            by_value=True,
        )
        return bipartite.merged(op, taps, site, pairs, bipartite.counted_once(op, taps, site))

    def fewest(self, tokens: int, protect: int) -> int:
        """No grid leaves fewer destinations than one just short of two cells either way."""
        return protect + -(-(tokens - protect) // ((2 * self.sx - 1) * (2 * self.sy - 1)))
