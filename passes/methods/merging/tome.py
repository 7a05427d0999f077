"""ToMe: merge each block's most similar token pairs, found by bipartite matching of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, steps


@dataclass(frozen=True)
class ToMe(Method):
    """Merge the R most similar pairs into their size-weighted mean.

    Sources are the unprotected tokens at even positions of the current sequence, destinations those at odd
    positions, so the output order is part of the method: protected, unmerged sources, destinations. The
    unmerged sources stay in position order, and without any protected token in descending similarity, both as
    published.
    Options: every: destinations are the last of every so many positions (2: the odd ones); with a larger number
    fewer tokens can be left, down to the destinations (k-th bipartite matching, of which the release drops a
    last incomplete group, whose tokens are sources here).
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "merge the most similar pairs of even and odd tokens, compared by their mean key"
    paper: ClassVar[str] = "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023"
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("ToMe", "Which Tokens to Use (10 methods)")
    merges: ClassVar[bool] = True

    every: int = 2

    def __post_init__(self) -> None:
        steps.at_least(self.name, "every", self.every, 2)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        _, pairs = bipartite.match(
            op,
            taps.metric(),
            range(site.protect),
            *bipartite.sides(site.protect, site.tokens, self.every),
            site.removed,
            by_value=site.protect == 0,
        )
        return bipartite.merged(op, taps, site, pairs)

    def fewest(self, tokens: int, protect: int) -> int:
        if self.every == 2:
            return tokens - (tokens - protect) // 2
        _, destinations = bipartite.sides(protect, tokens, self.every)
        return protect + len(destinations) if destinations else tokens
