"""SeRum: learned queries mark what a document is about; the rest joins the marked token it resembles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, clusters, joining, layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class SeRum(Trained):
    """Keep the K tokens that any query marks most, and merge every other into the one of largest cosine among them.

    A mark is sigmoid(q . E x), E a linear layer, as in query decoders that predict masks; the largest over the queries counts. A
    kept token becomes the mean of itself and what joins it, weighted by their marks: content-aware merging. Ours, where the
    description says no more: that queries are learned and not decoded from a text, how tokens are matched, and the weights.
    Output order: protected, then by position. Padding is marked last, adds nothing and keeps its sizes.
    Options: weights.
    """

    name: ClassVar[str] = "serum"
    summary: ClassVar[str] = "keep what trained queries mark, merge the rest into what it resembles"
    paper: ClassVar[str] = (
        "Cao et al., Attention Where It Matters: Rethinking Visual Document Understanding with Selective Region Concentration, "
        "ICCV 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {"queries": "Q,C", "mask.weight": "C,C", "mask.bias": "C"}
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("SeRum",)

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        queries, weight, bias = (self.tensor(name, site) for name in self.needs)
        width = site.channels or queries.shape[1]
        self.check("queries", queries, (len(queries), width))
        self.check("mask.weight", weight, (width, width))
        self.check("mask.bias", bias, (width,))
        tokens = clusters.finite(op, steps.float_tokens(op, taps))
        logits = op("MatMul", layers.linear(op, tokens, weight, bias), np.ascontiguousarray(queries.T))
        best = op("ReduceMax", logits, axes=[2], keepdims=0)
        index = scores.select(op, taps, site, best, steps.BY_POSITION)
        pairs = joining.to_nearest(op, taps, site, index, tokens)
        mark = op("Unsqueeze", op("Max", op("Sigmoid", best), scores.EPSILON), steps.LAST)
        if taps.padded:
            mark = op("Mul", mark, bipartite.counted_once(op, taps, site))
        return bipartite.merged(op, taps, site, pairs, mark)
