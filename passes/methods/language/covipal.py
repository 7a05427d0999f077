"""CoViPAL: a trained classifier in front of a layer tells which tokens of the picture the layers behind it need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class CoViPAL(Trained):
    """Keep the K tokens that the classifier rates highest: linear, GELU, linear of what the layer reads, one number a token.

    Published is a small module for each pruned layer, trained by the attention of deeper layers; its layers are not told, so
    these are ours. Behind block l it decides for layer l + 1. Padding leaves first.
    Options: weights: gate.0 [M,C] and gate.2 [1,M], with biases, block3.gate.0 and so on where layers differ.
    """

    name: ClassVar[str] = "covipal"
    summary: ClassVar[str] = "keep the tokens that a trained classifier of each layer asks for"
    paper: ClassVar[str] = (
        "Tang et al., CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models, EMNLP 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = scores.GATE
    systems: ClassVar[tuple[str, ...]] = ("CoViPAL",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        rows = clusters.finite(op, steps.float_tokens(op, taps))
        score = scores.numbers(op, scores.gate(op, self, site, rows))
        return scores.pruned(op, taps, site, score, steps.BY_POSITION)
