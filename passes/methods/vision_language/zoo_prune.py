"""ZOO-Prune: keep the tokens whose projection moves most when they do, and that differ from each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import directions, greedy, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

LEAST = 1e-8


@dataclass(frozen=True)
class ZOOPrune(Trained):
    """Choose the most sensitive token, then each time the largest s_i (1 - max cos(z_i, z_chosen)).

    The sensitivity of token x is the mean over M random directions u of length one of |P(x + h u) - P(x - h u)| / (2 h), P the
    projector, in float32; s scales it to 0 .. 1 and z are the projected tokens. The projector runs 2 M + 1 times over all
    tokens. Padding comes last.
    Options: directions M; step h; seed of the directions; weights: optional, directions [M,C], the directions themselves, of
    any length; order of the kept tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "zoo_prune"
    summary: ClassVar[str] = "keep tokens to which the projector is sensitive and that differ from each other"
    paper: ClassVar[str] = (
        "Kim et al., Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models, CVPR 2026"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "projected")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("ZOO-Prune",)
    optional: ClassVar[Mapping[str, str]] = {"directions": "M,C"}

    directions: int = 64
    step: float = 0.01
    seed: int = 0
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.at_least(self.name, "directions", self.directions, 1)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if self.step <= 0:
            raise MethodError(f"option step={self.step} of method {self.name!r}: expected more than 0")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        rated = greedy.spread(op, taps, site, self._sensitivity(op, taps, site), LEAST)
        whole = scores.behind_protected(op, rated, site)
        features = op("Cast", taps.projected(taps.tokens), to=steps.FLOAT)
        return steps.pruned(
            op, taps, site, greedy.apart(op, taps, site, features, whole, self.order, power=1.0)
        )

    def _sensitivity(self, op: Ops, taps: Taps, site: Site) -> Value:
        """How far a small step moves each projected token, the mean over directions: [B,N]."""
        drawn = directions.of_channels(self, "directions", self.directions, self.seed, site).astype(
            np.float64
        )
        moves = self.step * drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
        tokens, total = steps.float_tokens(op, taps), None
        for move in moves.astype(np.float32):
            ahead, behind = (taps.projected(op(way, tokens, move)) for way in ("Add", "Sub"))
            length = steps.lengths(op, op("Sub", ahead, behind))
            total = length if total is None else op("Add", total, length)
        return op("Squeeze", op("Mul", total, 0.5 / (self.step * self.directions)), steps.LAST)
