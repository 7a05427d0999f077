"""Slice: keep the first K tokens; the cheapest reduction there is, so the floor of every cost comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps


@dataclass(frozen=True)
class Slice(Method):
    """Keep the first K tokens and drop the others."""

    name: ClassVar[str] = "slice"
    summary: ClassVar[str] = "keep the first tokens: the least any reduction can cost"
    paper: ClassVar[str] = "none: a control"
    reads: ClassVar[tuple[str, ...]] = ()
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("slice",)
    drops: ClassVar[bool] = True

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        cut = (np.array([0]), np.array([site.keep]), np.array([1]))
        position = np.arange(site.keep)
        assign = np.where(np.arange(site.tokens) < site.keep, np.arange(site.tokens), -1)
        size = None if taps.size is None else op("Slice", taps.size, *cut)
        return Reduction(
            op("Slice", taps.tokens, *cut), size, op.constant(position[None]), op.constant(assign[None])
        )
