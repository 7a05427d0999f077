"""DyMU: merge the most similar pairs; the map says which token stands at every place it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite


@dataclass(frozen=True)
class DyMU(Method):
    """Merge the R most similar pairs of even and odd tokens, compared by their mean key, into their size-weighted mean.

    Output order: protected, unmerged even tokens (by descending similarity where nothing is protected, as published, else by
    position), odd tokens. The map of input places to outputs is the virtual unmerging: gathering by it gives each place the
    token it is part of.
    """

    name: ClassVar[str] = "dymu"
    summary: ClassVar[str] = "merge similar pairs at every block of the tower, with a map back to all places"
    paper: ClassVar[str] = (
        "Wang et al., DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "R pairs at each block instead of all above a threshold of the block, so it is ToMe's step"
    )
    systems: ClassVar[tuple[str, ...]] = (
        "DyMU: merging in the tower, with the map by which all places come back before the language model",
    )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return bipartite.merged(op, taps, site, bipartite.match_halves(op, taps.metric(), site))

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2
