"""MAGNET: a trained predictor finds the ends of segments, and each segment becomes its mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class Magnet(Trained):
    """Let a segment end at the K - 1 tokens that the predictor, linear, GELU, linear, rates highest, and at the last token.

    Each segment becomes the mean of its tokens, counted by their sizes, at the place of its last one. MAGNET has a predictor for
    each script; the weights given are those of one. Padding ends no segment, and adds nothing to a mean.
    Options: weights: gate.0 [M,C] and gate.2 [1,M], with biases.
    """

    name: ClassVar[str] = "magnet"
    summary: ClassVar[str] = "merge the tokens between the ends that a trained predictor finds"
    paper: ClassVar[str] = (
        "Ahia et al., MAGNET: Improving the Multilingual Fairness of Language Models with Adaptive Gradient-Based Tokenization, "
        "NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = "a fixed count of ends instead of all whose probability is above a half"
    needs: ClassVar[Mapping[str, str]] = scores.GATE
    systems: ClassVar[tuple[str, ...]] = ("MAGNET",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        rows = clusters.finite(op, clusters.plain(op, taps, site))
        rated = scores.behind_protected(op, scores.gate(op, self, site, rows), site)
        rated = steps.free(op, scores.unpadded(op, taps, rated), site)
        free, count = site.tokens - site.protect, clusters.outputs(site)
        final = np.arange(free) == free - 1
        ends = op(
            "TokenSelect", op("Where", final[None], -steps.LOWEST, rated), keep=count, protect=0, order=0
        )
        ended = op(
            "ScatterElements",
            scores.filled(op, rated, 0.0, free),
            ends,
            scores.filled(op, rated, 1.0, count),
            axis=1,
        )
        before = op("Sub", op("CumSum", ended, np.array(1)), ended)
        return clusters.merged(op, taps, site, ends, op("Cast", before, to=scores.INT64))
