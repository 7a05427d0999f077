"""RCP: a trained pruner corrects what the attention of the question says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

LEAST = 1e-20
"""Floor of an attention before its logarithm."""


@dataclass(frozen=True)
class RCP(Trained):
    """Keep the K tokens of largest log a + g, a the attention of the prompt's last token, g linear, GELU, linear of the token.

    What the published logit has besides, the mean over tokens and a constant, ranks nothing; its aggregation over learned queries
    and the adapter that repairs later layers are not here. Gates multiply from layer to layer: what has left is gone.
    Padding leaves first.
    Options: weights: gate.0 [M,C] and gate.2 [1,M], with biases.
    """

    name: ClassVar[str] = "rcp"
    summary: ClassVar[str] = "keep what the last word attends to, as a trained pruner corrects it"
    paper: ClassVar[str] = (
        "Representation Consistency Pruner (RCP) for vision-language models, by its published description"
    )
    reads: ClassVar[tuple[str, ...]] = ("last_attention", "tokens")
    evidence: ClassVar[Evidence] = "mathematics"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = "a fixed count instead of all whose gate is above a half"
    needs: ClassVar[Mapping[str, str]] = scores.GATE
    systems: ClassVar[tuple[str, ...]] = ("RCP: the pruner",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        rows = clusters.finite(op, steps.float_tokens(op, taps))
        asked = op("Log", op("Max", scores.numbers(op, taps.last_attention()), LEAST))
        score = op("Add", asked, scores.gate(op, self, site, rows))
        return scores.pruned(op, taps, site, scores.numbers(op, score), steps.BY_POSITION)
