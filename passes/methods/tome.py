"""ToMe: merge each block's most similar token pairs, found by bipartite matching of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods import _steps
from tokenrt.passes.methods.contract import Evidence, Family, Method, Ops, Reduction, Site, Taps


@dataclass(frozen=True)
class ToMe(Method):
    """Merge the R most similar pairs into their size-weighted mean.

    Sources are the unprotected tokens at even positions of the current sequence, destinations those at odd
    positions, so the output order is part of the method: protected, unmerged sources, destinations. The
    unmerged sources stay in position order, and without any protected token in descending similarity, both as
    published.
    """

    name: ClassVar[str] = "tome"
    family: ClassVar[Family] = "merging"
    summary: ClassVar[str] = "merge the most similar pairs of even and odd tokens, compared by their mean key"
    paper: ClassVar[str] = "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023"
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        free = range(site.protect, site.tokens)
        _, keep, source, destination = op(
            "TokenMatch",
            taps.metric(),
            sources=[position for position in free if position % 2 == 0],
            destinations=[position for position in free if position % 2 == 1],
            others=list(range(site.protect)),
            keep=site.keep,
            remove=site.removed,
            order=0 if site.protect else 1,
        )
        size = _steps.ones(op, taps.tokens, site) if taps.size is None else taps.size
        tokens, size = op("TokenCombine", taps.tokens, size, keep, source, destination)
        return Reduction(
            tokens, size, keep, _steps.merged_map(op, taps.tokens, keep, source, destination, site)
        )

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2
