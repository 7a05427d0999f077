"""M3: average the projected tokens over square windows, for one of the nested grids a checkpoint was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import pooling, steps


@dataclass(frozen=True)
class M3(Method):
    """Replace each k x k window of the grid by its plain mean, k the one that leaves K tokens.

    Cells beyond the last whole window of a row or column are dropped. Windows stand at the place of their last cell, in raster
    order. What comes out makes sense for counts that the language model was trained with (published: 1, 9, 36, 144 and 576);
    a count that no k leaves is refused, where the release returns another without a word.
    Options: pool k (0: found from K, one that divides the grid before others).
    """

    name: ClassVar[str] = "m3"
    summary: ClassVar[str] = "average the tokens over square windows of the grid"
    paper: ClassVar[str] = "Cai et al., Matryoshka Multimodal Models, ICLR 2025"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("M3",)

    pool: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "pool", self.pool, 0)

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        frames, rows, columns = pooling.grids(self, site)
        kept = pooling.each_frame(self, site, frames)
        fitting = [side for side in self._sides(rows, columns) if (rows // side) * (columns // side) == kept]
        if not fitting:
            near = sorted(self.counts(site), key=lambda count: abs(count - site.keep))[:2]
            raise PlanError(
                f"method {self.name!r} averages square windows of the {rows} x {columns} grid, and none leave {site.keep} of "
                f"{site.tokens} tokens; {' or '.join(str(count) for count in sorted(near))} can stay"
            )
        side = next((k for k in fitting if rows % k == columns % k == 0), fitting[0])
        return pooling.pooled(op, taps, site, pooling.blocks(rows, side), pooling.blocks(columns, side))

    def counts(self, site: Site) -> Sequence[int]:
        frames, rows, columns = pooling.grids(self, site)
        every = {frames * (rows // side) * (columns // side) for side in self._sides(rows, columns)}
        return sorted(site.protect + count for count in every if site.protect + count < site.tokens)

    def _sides(self, rows: int, columns: int) -> Sequence[int]:
        """The sides that windows can have."""
        return [self.pool] if self.pool else range(1, min(rows, columns) + 1)
