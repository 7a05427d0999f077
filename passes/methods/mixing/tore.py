"""TORE: pool the image tokens into K by learned weights that see each token's neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, layers, steps
from tokenrt.passes.methods.parts.weights import Trained
from tokenrt.passes.ops.contract import Array

NORMED = {"paper": (-1,), "reference": (-2, -1)}
SIDE = 3


@dataclass(frozen=True)
class TORE(Trained):
    """The image token pruner of TORE: a 3 x 3 convolution on the grid, GELU and a linear layer give K logits a token.

    W = softmax over tokens, y = LN(W x); output k is slot k. It needs the grid of the tokens, so it can only be the
    first reduction. A mixture stands for no count of tokens: sizes are one. That body vertices leave the transformer
    is a change of the published model, not a reduction.
    Options: variant: paper, the last norm is over the channels of each output; reference, over outputs and channels.
    """

    name: ClassVar[str] = "tore"
    summary: ClassVar[str] = "pool the image tokens into K by weights from a trained convolution"
    paper: ClassVar[str] = "Dou et al., TORE: Token Reduction for Efficient Human Mesh Recovery, ICCV 2023"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "independent implementation"
    systems: ClassVar[tuple[str, ...]] = ("TORE",)
    needs: ClassVar[Mapping[str, str]] = {
        "conv_weight": "M,C,3,3",
        "conv_bias": "M",
        "linear_weight": "K,M",
        "linear_bias": "K",
        "norm_weight": "K,C",
        "norm_bias": "K,C",
    }
    deviations: ClassVar[str] = (
        "variant=reference normalises the pooled tokens over outputs and channels together, as the release; "
        "variant=paper each over its channels"
    )

    variant: str = "paper"

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, tuple(NORMED))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        given = {name: self.tensor(name, site) for name in self.needs}
        slots, hidden = clusters.outputs(site), len(given["conv_weight"])
        width = site.channels or given["conv_weight"].shape[1]
        self.check("conv_weight", given["conv_weight"], (hidden, width, SIDE, SIDE))
        self.check("conv_bias", given["conv_bias"], (hidden,))
        self.check("linear_weight", given["linear_weight"], (slots, hidden))
        self.check("linear_bias", given["linear_bias"], (slots,))
        self.check("norm_weight", given["norm_weight"], (slots, width))
        self.check("norm_bias", given["norm_bias"], (slots, width))
        if site.grid is None or len(site.grid) != 2:
            raise steps.no_grid(self.name, site, "reduce once, before any other reduction")
        tokens = clusters.plain(op, taps, site)
        rows = _convolved(op, tokens, given["conv_weight"], given["conv_bias"], site.grid)
        rows = layers.linear(op, layers.gelu(op, rows), given["linear_weight"], given["linear_bias"])
        logits = op("Transpose", rows, perm=[0, 2, 1])
        matrix = clusters.shares(op, logits, clusters.real(op, taps, site))
        pooled = op("MatMul", matrix, tokens)
        axes = NORMED[self.variant]
        pooled = layers.layer_norm(op, pooled, given["norm_weight"], given["norm_bias"], axes=axes)
        return clusters.mixed(op, taps, site, matrix, pooled)


def _convolved(op: Ops, tokens: Value, weight: Array, bias: Array, grid: tuple[int, ...]) -> Value:
    """Convolve tokens [B,T,C] on their grid with weight [M,C,3,3], zeros outside: [B,T,M].

    Each token's nine neighbours side by side, then one product with the flattened kernel.
    """
    height, width = grid
    outside = height * width
    cells = np.pad(np.arange(outside).reshape(grid), 1, constant_values=outside)
    shifts = [cells[y : y + height, x : x + width].ravel() for y in range(SIDE) for x in range(SIDE)]
    zeros = op("Mul", op("Slice", tokens, np.array([0]), np.array([1]), np.array([1])), 0.0)
    padded = op("Concat", tokens, zeros, axis=1)
    patches = op("Concat", *(op("Gather", padded, shift, axis=1) for shift in shifts), axis=2)
    kernel = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return layers.linear(op, patches, kernel, bias)
