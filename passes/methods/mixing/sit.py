"""SiT: mix the tokens into K slots by learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class SiT(Trained):
    """Each slot is a weighted mean of the unprotected tokens; a small network reads the weights off each token.

    W = softmax over tokens of (slot GELU(hidden LN(x))) scale, and y = W x; output k is slot k. A mixture stands for
    no count of tokens: sizes are one. The reverse module of the paper serves its training only.
    """

    name: ClassVar[str] = "sit"
    summary: ClassVar[str] = "mix the tokens into K slots, weights from a small trained network"
    paper: ClassVar[str] = "Zong et al., Self-slimmed Vision Transformer, ECCV 2022"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    needs: ClassVar[Mapping[str, str]] = {
        "norm_weight": "C",
        "norm_bias": "C",
        "hidden_weight": "C/2,C",
        "hidden_bias": "C/2",
        "slot_weight": "K,C/2",
        "slot_bias": "K",
        "scale": "1",
    }

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        given = {name: self.tensor(name, site) for name in self.needs}
        slots, hidden = clusters.outputs(site), len(given["hidden_bias"])
        width = site.channels or len(given["norm_weight"])
        self.check("norm_weight", given["norm_weight"], (width,))
        self.check("norm_bias", given["norm_bias"], (width,))
        self.check("hidden_weight", given["hidden_weight"], (hidden, width))
        self.check("slot_weight", given["slot_weight"], (slots, hidden))
        self.check("slot_bias", given["slot_bias"], (slots,))
        self.check("scale", given["scale"], (1,))
        tokens = clusters.plain(op, taps, site)
        rows = layers.layer_norm(op, tokens, given["norm_weight"], given["norm_bias"])
        rows = layers.gelu(op, layers.linear(op, rows, given["hidden_weight"], given["hidden_bias"]))
        rows = layers.linear(op, rows, given["slot_weight"], given["slot_bias"])
        logits = op("Mul", op("Transpose", rows, perm=[0, 2, 1]), op.constant(given["scale"]))
        matrix = clusters.shares(op, logits, clusters.real(op, taps, site))
        return clusters.mixed(op, taps, site, matrix, op("MatMul", matrix, tokens))
