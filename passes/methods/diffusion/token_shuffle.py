"""Token-Shuffle: the tokens of each square are narrowed and put side by side into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers, steps, windows
from tokenrt.passes.methods.parts.weights import Trained

SIDE = 2
CELLS = SIDE * SIDE


@dataclass(frozen=True)
class TokenShuffle(Trained):
    """Fold each square of 2 x 2 tokens into one: a linear layer narrows each to a quarter of its channels, then they are joined.

    So a quarter of the tokens is left, no other count. The model is trained so, and unfolds what it generates by the inverse
    layer; blocks that mix what was joined belong to the model. Folded tokens stand at the last of their square, in raster order.
    Options: weights: fold [C/4,C] with its bias.
    """

    name: ClassVar[str] = "token_shuffle"
    summary: ClassVar[str] = "fold squares of tokens into their channels, by trained weights"
    paper: ClassVar[str] = (
        "Ma et al., Token-Shuffle: Towards High-Resolution Image Generation with Autoregressive Models, ICLR 2026"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "mathematics"
    needs: ClassVar[Mapping[str, str]] = {"fold.weight": "C/4,C", "fold.bias": "C/4"}
    pending: ClassVar[str] = (
        "a model that was trained so has folding and unfolding among its layers already, and blocks of no other were trained to "
        "read folded tokens or to give what a layer unfolds"
    )
    systems: ClassVar[tuple[str, ...]] = ("Token-Shuffle: folding",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        weight, bias = self.tensor("fold.weight", site), self.tensor("fold.bias", site)
        width = site.channels or weight.shape[1]
        self.check("fold.weight", weight, (width // CELLS, width))
        self.check("fold.bias", bias, (width // CELLS,))
        table = windows.windows(self, site, SIDE, SIDE)
        free = site.tokens - site.protect
        if width % CELLS or len(table) * CELLS != free or len(table) != clusters.outputs(site):
            raise PlanError(
                f"{self.name} folds squares of {SIDE} x {SIDE}: the grid {site.grid} must have even sides, {width} channels be a "
                f"multiple of {CELLS}, and {site.protect + free // CELLS} of {site.tokens} tokens stay, not {site.keep}"
            )
        rows = clusters.finite(op, steps.float_tokens(op, taps))
        narrow = layers.linear(op, op("Gather", rows, table.ravel(), axis=1), weight, bias)
        folded = op("Reshape", narrow, np.array([0, len(table), width]))
        order = np.argsort(table[:, -1])
        went = np.arange(site.tokens)
        went[table[order].ravel()] = np.repeat(site.protect + np.arange(len(table)), CELLS)
        owner = (went[None] == np.arange(site.keep)[:, None]).astype(np.float32)
        return Reduction(
            clusters.ahead(op, taps, site, op("CastLike", op("Gather", folded, order, axis=1), taps.tokens)),
            None if taps.size is None else op("MatMul", owner, taps.size),
            op.constant(np.concatenate([np.arange(site.protect), table[order, -1]])[None]),
            op.constant(went[None]),
        )

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + max((tokens - protect) // CELLS, 1)
