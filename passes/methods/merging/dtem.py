"""DTEM: ToMe on an embedding learned for merging alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class DTEM(Trained):
    """Match even with odd tokens by the cosine of a learned linear map of the normalised block input.

    The map reads what the projections to queries, keys and values read; everything else is ToMe, its output
    order included. Tensors: weight [M,C] and bias [M], M the width of the embedding.
    """

    name: ClassVar[str] = "dtem"
    summary: ClassVar[str] = "ToMe, with tokens compared by an embedding trained for merging"
    paper: ClassVar[str] = (
        "Lee and Hong, Learning to Merge Tokens via Decoupled Embedding for Efficient ViTs, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("normed",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("DTEM",)
    merges: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {"weight": "M,C", "bias": "M"}

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        weight, bias = self.tensor("weight", site), self.tensor("bias", site)
        self.check("weight", weight, (len(weight), site.channels or weight.shape[1]))
        self.check("bias", bias, weight.shape[:1])
        metric = op("Add", op("MatMul", taps.normed(), np.ascontiguousarray(weight.T)), bias)
        return bipartite.merged(op, taps, site, bipartite.match_halves(op, metric, site))

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2
