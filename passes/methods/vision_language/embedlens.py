"""EmbedLens: drop the tokens nearest to embeddings that stand for sinks and dead tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import rows, scores, steps
from tokenrt.passes.methods.parts.weights import Trained
from tokenrt.passes.ops.contract import Array

ROUNDING = 1e-6
"""By which a row must be nearer: a prototype is a row of the table too."""


@dataclass(frozen=True)
class EmbedLens(Trained):
    """Keep the K tokens whose largest cosine to a prototype is smallest, in ascending position.

    Prototypes are rows of the language model's embedding table that useless tokens lie nearest to: of LLaVA-1.5 ids 1141 (sinks
    of the tower), 26673 (sinks of the language model) and 30296 (dead). With the whole table those leave first of which the
    fewest of its rows are nearer than a prototype, as in the release, at the cost of a product with all of them; then, and
    among equals, those of larger cosine. Protected tokens take no part; padding leaves first.
    Weights: prototypes [Q,C] and, optional, vocabulary [V,C], the table.
    """

    name: ClassVar[str] = "embedlens"
    summary: ClassVar[str] = "drop the tokens nearest to the embeddings that sinks and dead tokens lie at"
    paper: ClassVar[str] = (
        "Fan et al., What Do Visual Tokens Really Encode? Uncovering Sparsity and Redundancy in Multimodal Large Language "
        "Models, arXiv 2603.00510"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the release drops a token when one of those ids is among its 3 nearest of the vocabulary; here those nearest to them "
        "leave until K are left"
    )
    needs: ClassVar[Mapping[str, str]] = {"prototypes": "Q,C"}
    optional: ClassVar[Mapping[str, str]] = {"vocabulary": "V,C"}
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("EmbedLens",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
        near = op("ReduceMax", op("MatMul", unit, self._rows("prototypes", site)), axes=[2], keepdims=1)
        score = op("Neg", op("Squeeze", near, steps.LAST))
        if "vocabulary" in self._tensors():
            nearer = op(
                "Greater", op("MatMul", unit, self._rows("vocabulary", site)), op("Add", near, ROUNDING)
            )
            count = op("ReduceSum", op("Cast", nearer, to=steps.FLOAT), steps.LAST, keepdims=0)
            score = op("Add", count, op("Mul", score, 0.25))
        return scores.pruned(op, taps, site, scores.behind_protected(op, score, site), steps.BY_POSITION)

    def _rows(self, name: str, site: Site) -> Array:
        """A table's rows at length one, as columns [C,Q]."""
        table = self.tensor(name, site)
        self.check(name, table, (len(table), site.channels or table.shape[1]))
        length = np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        return np.asarray((table / length).T)
