"""IDPruner: importance against likeness to what is chosen, by maximal marginal relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, greedy, rows, scores, steps

LEAST = 1e-6


@dataclass(frozen=True)
class IDPruner(Method):
    """Choose the most important token, then each time the largest balance a_i - (1 - balance) max cos(i, chosen).

    a is the importance from 0 to 1, (s - min) / (max - min + 1e-6), of the input `importance` [B,N]: what the authors' trained
    selector says, or any other score. Padding comes last, unless balance is 0.
    Options: balance, 0 to 1; parallel: how many tokens are chosen at a time by the same state, 1 as published;
    order of the kept tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "idpruner"
    summary: ClassVar[str] = (
        "choose tokens one by one for their importance and against likeness to those chosen"
    )
    paper: ClassVar[str] = (
        "Tan et al., IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs, arXiv 2602.13315"
    )
    reads: ClassVar[tuple[str, ...]] = ("importance", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("importance",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("IDPruner",)

    balance: float = 0.5
    parallel: int = 1
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.at_least(self.name, "parallel", self.parallel, 1)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if not 0 <= self.balance <= 1:
            raise MethodError(f"option balance={self.balance} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        rated = greedy.spread(op, taps, site, taps.importance(), LEAST)
        if self.balance == 1:
            return scores.pruned(op, taps, site, scores.behind_protected(op, rated, site), self.order)
        if self.parallel > 1:
            return steps.pruned(op, taps, site, self._in_parallel(op, taps, site, rated))
        mix = self.balance / (1 - self.balance)
        whole = scores.behind_protected(op, rated, site)
        index = greedy.apart(op, taps, site, steps.float_tokens(op, taps), whole, self.order, mix=mix)
        return steps.pruned(op, taps, site, index)

    def _in_parallel(self, op: Ops, taps: Taps, site: Site, rated: Value) -> Value:
        """`parallel` tokens a turn: positions [B,K]."""
        unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
        turned = op("Transpose", unit, perm=[0, 2, 1])
        rest, wanted = op("Mul", rated, self.balance), site.keep - site.protect
        shown = clusters.real(op, taps, site)
        if shown is not None:
            rest = op("Where", op("Squeeze", shown, clusters.ROWS), rest, steps.LOWEST)
        gain, likeness, chosen = rest, None, list[Value]()
        while wanted:
            count = min(self.parallel, wanted)
            best = op("TokenSelect", gain, keep=count, protect=0, order=steps.ORDERS[steps.BY_SCORE])
            chosen.append(best)
            wanted -= count
            rest = op("ScatterElements", rest, best, scores.filled(op, rest, -np.inf, count), axis=1)
            near = op("ReduceMax", op("MatMul", steps.gather(op, unit, best), turned), axes=[1], keepdims=0)
            likeness = near if likeness is None else op("Max", likeness, near)
            gain = op("Sub", rest, op("Mul", likeness, 1 - self.balance))
        index = bipartite.joined(op, chosen)
        if self.order == steps.BY_POSITION:
            index = bipartite.ascending(op, index, site.keep - site.protect)
        return clusters.whole(op, taps, site, index)
