"""Pruning one more token (POMT): attention received and values score the patches, the others become their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class PruneOneMoreToken(Method):
    """Keep the best unprotected tokens by c + m, and the mean of the others as one token, the last.

    c_j is the sum over unprotected queries of the largest attention of any head to token j, divided by the largest such sum;
    m is a softmax over all tokens of the sum over channels of the largest value of any head. The authors prune once, behind
    block 3, to the count at which a measured utility of latency and accuracy is largest. Padding leaves first and is not in the
    mean.
    Options: order of the kept tokens: position, or score (as published); variant (see deviations).
    """

    name: ClassVar[str] = "pomt"
    summary: ClassVar[str] = "keep tokens by attention received and values, and the mean of the others"
    paper: ClassVar[str] = (
        "Eliopoulos et al., Pruning One More Token is Enough: Leveraging Latency-Workload Non-Linearities for Vision "
        "Transformers on the Edge, WACV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("attention", "values")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("POMT",)
    deviations: ClassVar[str] = (
        "variant=reference: the largest sum of attention is that of the whole batch, so that images decide together; "
        "variant=paper: of each image"
    )

    order: str = steps.BY_POSITION
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = scores.numbers(op, op("Add", self._received(op, taps, site), _strong(op, taps)))
        index = scores.select(op, taps, site, score, self.order, site.keep - 1)
        weight = scores.dropped(op, score, index, site)
        there = scores.present(op, taps)
        weight = weight if there is None else op("Mul", weight, there)
        mean = scores.weighted_mean(op, weight, steps.float_tokens(op, taps))
        return scores.appended(op, taps, site, score, index, mean)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + 2

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + 1

    def _received(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Attention received by the most attentive heads, the largest 1: [B,N], 0 for protected tokens."""
        strongest = op("ReduceMax", taps.attention(), axes=[1], keepdims=0)
        asking = steps.free(op, strongest, site)
        there = scores.present(op, taps)
        if there is not None:
            asking = op("Mul", asking, op("Unsqueeze", steps.free(op, there, site), steps.LAST))
        total = steps.free(op, op("ReduceSum", asking, np.array([1]), keepdims=0), site)
        axes = [0, 1] if self.variant == scores.REFERENCE else [1]
        most = op("Max", op("ReduceMax", total, axes=axes, keepdims=1), scores.EPSILON)
        return scores.behind_protected(op, op("Div", total, most), site)


def _strong(op: Ops, taps: Taps) -> Value:
    """Softmax of the sum of each token's strongest values: [B,N]."""
    total = op("ReduceSum", op("ReduceMax", taps.values(), axes=[1], keepdims=0), steps.LAST, keepdims=0)
    return op("Softmax", scores.unpadded(op, taps, total), axis=-1)
