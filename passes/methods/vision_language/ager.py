"""AGER: learned centres gather the patch tokens of the instances they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class AGER(Trained):
    """Turn N patch tokens into K instance tokens: each patch goes to one centre, and a centre adds the mean of its patches.

    A patch goes where (Wq c) . (Wk x) is the largest, ties to the earlier centre, which is the choice that a hard Gumbel softmax
    makes after training; y = c + Wo mean(Wv x), and a centre without patches stays as it is. Output k belongs to centre k.
    Ours, where the description says no more: plain tokens in front of the projections, and a single grouping stage; centres
    that change from layer to layer, and what guides their training, are not here.
    Padding goes nowhere. Sizes are one: an instance stands for no count of tokens.
    Options: weights.
    """

    name: ClassVar[str] = "ager"
    summary: ClassVar[str] = "gather patch tokens into instance tokens by trained centres"
    paper: ClassVar[str] = (
        "Tu et al., Agglomerative Transformer for Human-Object Interaction Detection, ICCV 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    needs: ClassVar[Mapping[str, str]] = {
        "centers": "K,C",
        "q.weight": "C,C",
        "k.weight": "C,C",
        "v.weight": "C,C",
        "proj.weight": "C,C",
        "proj.bias": "C",
    }
    home: ClassVar[Home] = "features"
    systems: ClassVar[tuple[str, ...]] = ("AGER: one stage of grouping",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        given = {name: self.tensor(name, site) for name in self.needs}
        slots = clusters.outputs(site)
        width = site.channels or given["centers"].shape[1]
        lengths = {"K": slots, "C": width}
        for name, shape in self.needs.items():
            self.check(name, given[name], tuple(lengths[part] for part in shape.split(",")))
        tokens = clusters.finite(op, clusters.plain(op, taps, site))
        asking = given["centers"].astype(np.float64) @ given["q.weight"].T @ given["k.weight"]
        logits = op("MatMul", op.constant(asking), op("Transpose", tokens, perm=[0, 2, 1]))
        member = clusters.members(op, op("ArgMax", logits, axis=1, keepdims=0), slots)
        shown = clusters.real(op, taps, site)
        if shown is not None:
            member = op("And", member, shown)
        weight = op("Cast", member, to=steps.FLOAT)
        count = op("ReduceSum", weight, steps.LAST, keepdims=1)
        mean = op("Div", op("MatMul", weight, tokens), op("Max", count, 1.0))
        inner = np.asarray(given["proj.weight"].astype(np.float64) @ given["v.weight"], np.float32)
        added = layers.linear(op, mean, inner, given["proj.bias"])
        made = op("Add", given["centers"], op("Where", op("Greater", count, 0.0), added, 0.0))
        return clusters.mixed(op, taps, site, weight, made)
