"""PatchMerger: mix the normalised tokens into K outputs by learned queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class PatchMerger(Trained):
    """Each output is a weighted mean of the normalised tokens: W = softmax over tokens of Q LN(x), y = W LN(x).

    Output k belongs to query k. A mixture stands for no count of tokens: sizes are one.
    Options: scaled: divide the logits by sqrt(C); epsilon of the norm.
    """

    name: ClassVar[str] = "patchmerger"
    summary: ClassVar[str] = "mix the normalised tokens into K outputs by trained queries"
    paper: ClassVar[str] = "Renggli et al., Learning to Merge Tokens in Vision Transformers, 2022"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    needs: ClassVar[Mapping[str, str]] = {"queries": "K,C", "norm_weight": "C", "norm_bias": "C"}

    scaled: bool = False
    epsilon: float = 1e-5

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        queries, weight, bias = (self.tensor(name, site) for name in self.needs)
        width = site.channels or len(weight)
        self.check("norm_weight", weight, (width,))
        self.check("norm_bias", bias, (width,))
        self.check("queries", queries, (clusters.outputs(site), width))
        rows = layers.layer_norm(op, clusters.plain(op, taps, site), weight, bias, self.epsilon)
        asking = op.constant(queries.astype(np.float64) * (width**-0.5 if self.scaled else 1.0))
        logits = op("MatMul", asking, op("Transpose", rows, perm=[0, 2, 1]))
        matrix = clusters.shares(op, logits, clusters.real(op, taps, site))
        return clusters.mixed(op, taps, site, matrix, op("MatMul", matrix, rows))
