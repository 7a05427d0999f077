"""TokenFLEX: average the tokens over a coarser grid of any size, before the projector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import pooling


@dataclass(frozen=True)
class TokenFLEX(Method):
    """Average the grid adaptively to h' x w' = K cells, whose shape is the nearest to that of the grid.

    Output row i is the mean of the input rows floor(i h / h') to ceil((i + 1) h / h') - 1, and columns alike, so that windows
    overlap where h' does not divide h. What comes out makes sense for counts that the model was trained with (published: 64, 144
    and 256, before a projector trained for them). A window stands at the place of its last cell.
    """

    name: ClassVar[str] = "tokenflex"
    summary: ClassVar[str] = "average the tokens over a coarser grid of any size"
    paper: ClassVar[str] = (
        "Hu et al., TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference, arXiv 2504.03154"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("TokenFLEX",)

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        frames, rows, columns = pooling.grids(self, site)
        kept = pooling.each_frame(self, site, frames)
        shapes = _shapes(kept, rows, columns)
        if not shapes:
            near = sorted(sorted(self.counts(site), key=lambda count: abs(count - site.keep))[:2])
            counts = " or ".join(map(str, near))
            raise PlanError(
                f"method {self.name!r} leaves a grid, and {kept} tokens are none of at most {rows} x {columns} cells; "
                f"{counts} of {site.tokens} tokens can stay"
            )
        down, across = min(shapes, key=lambda shape: abs(log(shape[0] * columns / (shape[1] * rows))))
        return pooling.pooled(op, taps, site, pooling.adaptive(rows, down), pooling.adaptive(columns, across))

    def counts(self, site: Site) -> Sequence[int]:
        frames, rows, columns = pooling.grids(self, site)
        each = (count for count in range(1, rows * columns) if _shapes(count, rows, columns))
        return [site.protect + frames * count for count in each]


def _shapes(count: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """The grids of so many cells that are no larger than this one."""
    return [
        (down, count // down) for down in range(1, rows + 1) if count % down == 0 and count // down <= columns
    ]
