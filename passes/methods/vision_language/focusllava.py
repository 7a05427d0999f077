"""FocusLLaVA: a trained router decides which regions stay fine; the others become one pooled token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, layers, steps, windows
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class FocusLLaVA(Trained):
    """Replace the regions that the router least wants fine by the plain mean of their tokens, as many as K asks for.

    A region is w x w cells of the grid and saves w^2 - 1 tokens. This is the vision sampler with two scales; the published one
    offers several, and its text sampler sits inside the language model. Ours, where nothing is published: the router is linear
    on the mean of a region, with a logit for each scale, fine first, and the difference of the two is ranked.
    Output order: protected, fine tokens ascending, pooled regions ascending, each at the place of its last cell.
    Options: side w of a region; weights.
    """

    name: ClassVar[str] = "focusllava"
    summary: ClassVar[str] = "keep regions fine that a trained router selects, pool the others"
    paper: ClassVar[str] = (
        "Zhu et al., FocusLLaVA: A Coarse-to-Fine Approach for Efficient and Effective Visual Token Compression, arXiv 2411.14228"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = "a fixed number of regions is pooled, where the router decides each by itself"
    needs: ClassVar[Mapping[str, str]] = {"router.weight": "2,C", "router.bias": "2"}
    home: ClassVar[Home] = "output"
    systems: ClassVar[tuple[str, ...]] = ("FocusLLaVA: region sampler",)

    side: int = 2

    def __post_init__(self) -> None:
        steps.at_least(self.name, "side", self.side, 2)

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        weight, bias = self.tensor("router.weight", site), self.tensor("router.bias", site)
        self.check("router.weight", weight, (2, site.channels or weight.shape[1]))
        self.check("router.bias", bias, (2,))
        table = windows.windows(self, site, self.side, self.side)
        coarse, rest = divmod(site.removed, self.unit)
        if rest or coarse > len(table):
            raise windows.misfit(self, table, site)
        members = op("Gather", steps.float_tokens(op, taps), table.ravel(), axis=1)
        regions = op("Reshape", members, np.array([0, len(table), table.shape[1], -1]))
        means = op("Mul", op("ReduceSum", regions, np.array([2]), keepdims=0), 1 / table.shape[1])
        pooled = layers.linear(op, means, weight[1:] - weight[:1], bias[1:] - bias[:1])
        chosen = op("TokenSelect", op("Squeeze", pooled, steps.LAST), keep=coarse, protect=0, order=0)
        pairs = windows.shared(
            op, taps.tokens, table, chosen, coarse, site, place=-1, behind=site.keep - coarse
        )
        return bipartite.merged(op, taps, site, pairs, bipartite.counted_once(op, taps, site))

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // (self.side * self.side) * self.unit

    @property
    def unit(self) -> int:
        return self.side * self.side - 1
