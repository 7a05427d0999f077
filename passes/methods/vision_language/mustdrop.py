"""MustDrop: make one token of each window of the grid whose tokens resemble each other most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, steps, windows


@dataclass(frozen=True)
class MustDrop(Method):
    """Merge the windows with the highest mean cosine of their tokens, each into its last cell, by the size-weighted mean.

    A window of w x w cells saves w^2 - 1 tokens, so tokens leave in multiples of that; cells at the right and at the bottom
    that fill no window stay.
    Output order: protected, the merged windows by descending cosine, the other tokens by position.
    This is the spatial stage, published behind the first block of the tower (`--layers 0 --site after-block`), 3 x 3 windows,
    where later attention does not count sizes (`--no-proportional-attention`). The stage inside the language model is
    mustdrop_dual.
    Options: side w of a window.
    """

    name: ClassVar[str] = "mustdrop"
    summary: ClassVar[str] = "merge the windows of the grid whose tokens are most alike"
    paper: ClassVar[str] = (
        "Liu et al., Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model, arXiv 2411.10803"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = "a fixed number of windows instead of all whose mean cosine is 0.8 or more"
    systems: ClassVar[tuple[str, ...]] = ("MustDrop: merging inside the tower",)

    side: int = 3

    def __post_init__(self) -> None:
        steps.at_least(self.name, "side", self.side, 2)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        table = windows.windows(self, site, self.side, self.side)
        merge, rest = divmod(site.removed, self.unit)
        if rest or merge > len(table):
            raise windows.misfit(self, table, site)
        alike = windows.likeness(op, steps.float_tokens(op, taps), table)
        chosen = op("TokenSelect", alike, keep=merge, protect=0, order=steps.ORDERS[steps.BY_SCORE])
        pairs = windows.shared(op, taps.tokens, table, chosen, merge, site, place=-1, behind=site.protect)
        return bipartite.merged(op, taps, site, pairs)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // (self.side * self.side) * self.unit

    @property
    def unit(self) -> int:
        return self.side * self.side - 1
