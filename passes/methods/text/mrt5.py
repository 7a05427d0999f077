"""MrT5: a trained gate tells which bytes the encoder's later layers need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

EPSILON = 1e-6
"""Of the T5 norm."""


@dataclass(frozen=True)
class MrT5(Trained):
    """Keep the K tokens with the largest w . LN(x) + b, LN the T5 norm: x over its root mean square, times a weight.

    The release keeps a token where the gate, scale * sigmoid of minus that number, is above half the scale or another threshold;
    the gate falls as the number rises, so the order is the same. Published behind the third layer of the encoder, whose position
    bias loses the same rows and columns. Padding leaves first.
    Options: weights: norm [C], gate [1,C], bias [1].
    """

    name: ClassVar[str] = "mrt5"
    summary: ClassVar[str] = "keep the bytes that a trained gate lets through"
    paper: ClassVar[str] = (
        "Kallini et al., MrT5: Dynamic Token Merging for Efficient Byte-level Language Models, ICLR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = "a fixed count instead of all tokens whose gate is above a threshold"
    needs: ClassVar[Mapping[str, str]] = {"norm": "C", "gate": "1,C", "bias": "1"}
    systems: ClassVar[tuple[str, ...]] = ("MrT5",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        norm, gate, bias = (self.tensor(name, site) for name in self.needs)
        width = site.channels or gate.shape[1]
        self.check("norm", norm, (width,))
        self.check("gate", gate, (1, width))
        self.check("bias", bias, (1,))
        rows = clusters.finite(op, steps.float_tokens(op, taps))
        square = op("ReduceMean", op("Mul", rows, rows), axes=[2], keepdims=1)
        unit = op("Mul", op("Div", rows, op("Sqrt", op("Add", square, EPSILON))), norm)
        logit = op("Squeeze", layers.linear(op, unit, gate, bias), np.array([2]))
        return scores.pruned(op, taps, site, logit, steps.BY_POSITION)
