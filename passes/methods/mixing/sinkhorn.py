"""Sinkhorn: mix the tokens by a transport plan to learned centres."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps
from tokenrt.passes.methods.parts.weights import Trained

LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Sinkhorn(Trained):
    """Each output is the sum of the unit tokens, weighted by an entropic transport plan to the unit centres.

    Z = cosine(centre, token) / eps; a round sets u so that each centre has mass 1/(M+T), then v so that each token
    has; the plan is exp(Z + u + v) (M+T), in which each token's weights add up to 1. Outputs mix tokens of length
    one, so lengths are lost, as published. Output k belongs to centre k. A mixture stands for no count of tokens:
    sizes are one.
    Options: eps; iterations, the number of rounds.
    """

    name: ClassVar[str] = "sinkhorn"
    summary: ClassVar[str] = "mix unit tokens by a Sinkhorn transport plan to trained centres"
    paper: ClassVar[str] = "Haurum et al., Which Tokens to Use?, ICCVW 2023 (Sinkhorn)"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    needs: ClassVar[Mapping[str, str]] = {"centers": "K,C"}

    eps: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        if not self.eps > 0 or self.iterations < 1:
            raise MethodError(
                f"options eps={self.eps} and iterations={self.iterations} of method {self.name!r}: expected "
                "eps above 0 and 1 iteration or more"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        centers = self.tensor("centers", site).astype(np.float64)
        self.check("centers", centers, (clusters.outputs(site), site.channels or centers.shape[1]))
        norm = np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), LEAST_NORM)
        tokens = clusters.plain(op, taps, site)
        length = op("Sqrt", op("ReduceSum", op("Mul", tokens, tokens), clusters.LAST, keepdims=1))
        unit = op("Div", tokens, op("Max", length, LEAST_NORM))
        product = op("MatMul", op.constant(centers / norm), op("Transpose", unit, perm=[0, 2, 1]))
        plan = self._plan(op, op("Mul", product, 1.0 / self.eps), taps, site)
        return clusters.mixed(op, taps, site, plan, op("MatMul", plan, unit))

    def _plan(self, op: Ops, cost: Value, taps: Taps, site: Site) -> Value:
        """Return the plan [B,M,T]; padding gets nothing and takes nothing."""
        marginal = -math.log(site.tokens - site.protect + clusters.outputs(site))
        shown = clusters.real(op, taps, site)
        by_token = cost
        for _ in range(self.iterations):
            seen = by_token if shown is None else op("Where", shown, by_token, steps.LOWEST)
            by_center = op("Add", cost, op("Sub", marginal, _log_sum(op, seen, 2)))
            shift = op("Sub", marginal, _log_sum(op, by_center, 1))
            by_token = op("Add", cost, shift)
        plan = op("Exp", op("Sub", op("Add", by_center, shift), marginal))
        return plan if shown is None else op("Where", shown, plan, 0.0)


def _log_sum(op: Ops, value: Value, axis: int) -> Value:
    """Return log(sum(exp(value))) over one axis, which stays."""
    top = op("ReduceMax", value, axes=[axis], keepdims=1)
    total = op("ReduceSum", op("Exp", op("Sub", value, top)), np.array([axis]), keepdims=1)
    return op("Add", op("Log", total), top)
