"""HiRED: the thumbnail's early attention shares the tokens among crops, late attention chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, quotas, scores, steps
from tokenrt.passes.methods.parts.mosaic import rows_of
from tokenrt.passes.methods.parts.quotas import Groups
from tokenrt.passes.ops.contract import Array

EARLY = "early"


@dataclass(frozen=True)
class HiRED(Method):
    """Keep K tokens of a thumbnail and P tiles, n each, those with the most class attention of each crop.

    The tokens of all crops are one sequence, the thumbnail's first. It keeps min(floor(alpha K), n). Its
    floor((1 - alpha) n) tokens with the most class attention of an early block are marked, and tile p gets the share of the
    K - that which the marks in its region are of all marks, at most n. What is left where a tile is full goes to the best
    tokens that are left. Tokens of one crop alone: the K best. Kept tokens ascend; padding leaves first.
    Options: alpha; crops 1 + P (0: from the grid (crops, h, w), else one); rows of tiles (0: the most square layout); early:
    the block of the marks; score: class, received (towers without a class token) or auto; variant (see deviations). The
    published tap block is the last but one (`--tap-layer -2`).
    """

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "share the tokens among crops by early class attention, choose them by late"
    paper: ClassVar[str] = (
        "Arif et al., HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models, "
        "AAAI 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the release rounds every tile's share down, which loses up to P tokens; here those go to the largest remainders, so "
        "that K stay"
    )
    home: ClassVar[Home] = "features"
    layers: ClassVar[tuple[str, ...]] = (EARLY,)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("HiRED",)
    deviations: ClassVar[str] = (
        "variant=reference: a tile's region is a stretch of n / P tokens of the thumbnail, as released; variant=paper: it is "
        "the part of the thumbnail's grid that the tile shows"
    )

    alpha: float = 0.5
    crops: int = 0
    rows: int = 0
    early: int = 0
    score: str = "auto"
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.at_least(self.name, "crops", self.crops, 0)
        steps.at_least(self.name, "rows", self.rows, 0)
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        if not 0 <= self.alpha <= 1:
            raise MethodError(f"option alpha={self.alpha} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        crops = self.crops or clips.of_grid(site.grid) or 1
        late = steps.importance(op, taps, site, self.score)
        if crops == 1:
            return scores.pruned(op, taps, site, late, steps.BY_POSITION)
        tokens = site.tokens - site.protect
        if tokens % crops:
            raise PlanError(
                f"{self.name}: {tokens} tokens are not {crops} crops of equal size; set crops=1 + tiles"
            )
        early = steps.importance(op, taps.layer(EARLY, self.early), site, self.score)
        quota = self._quotas(op, steps.free(op, early, site), site, crops, tokens // crops)
        groups = Groups.of(tokens, crops)
        rank = groups.ranks(op, steps.free(op, scores.unpadded(op, taps, scores.numbers(op, late)), site))
        chosen = op("Less", rank, groups.to_tokens(op, quota))
        return steps.pruned(op, taps, site, quotas.select(op, taps, site, late, chosen))

    def _quotas(self, op: Ops, early: Value, site: Site, crops: int, each: int) -> Value:
        """How many tokens each crop keeps: [B,1+P]."""
        kept, tiles = site.keep - site.protect, crops - 1
        whole = max(min(int(kept * self.alpha), each), kept - tiles * each)
        thumbnail = scores.numbers(op, steps.cut(op, early, 0, each))
        marks = int(each * (1 - self.alpha))
        marked = op("Cast", op("Less", quotas.ranks(op, thumbnail, each), float(marks)), to=steps.FLOAT)
        counts = op("MatMul", marked, self._regions(site, tiles, each))
        share = op("Div", op("Mul", counts, float(kept - whole)), float(max(marks, 1)))
        shares = op("Min", quotas.whole(op, share, kept - whole, tiles), float(each))
        return op("Concat", scores.filled(op, early, float(whole), 1), shares, axis=1)

    def _regions(self, site: Site, tiles: int, each: int) -> Array:
        """Which tile each of the thumbnail's tokens belongs to: [n,P] float32."""
        if self.variant == scores.REFERENCE:
            if each % tiles:
                raise PlanError(
                    f"{self.name}: {each} tokens of the thumbnail do not split into {tiles} equal stretches"
                )
            number = np.arange(each) * tiles // each
        else:
            if site.grid is None or len(site.grid) != 3:
                raise steps.no_grid(self.name, site)
            rows = rows_of(self.name, tiles, self.rows)
            row, column = np.indices(site.grid[1:]).reshape(2, -1)
            down = row * rows // site.grid[1]
            number = down * (tiles // rows) + column * (tiles // rows) // site.grid[2]
        return np.equal(number[:, None], np.arange(tiles)).astype(np.float32)
