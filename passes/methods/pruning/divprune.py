"""DivPrune: keep the tokens that lie farthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps
from tokenrt.passes.ops.token_greedy_select import MAX_MIN, MOST_ISOLATED

FEATURES = ("tokens", "keys")


@dataclass(frozen=True)
class DivPrune(Method):
    """Choose tokens one by one, each time the one whose nearest chosen token is the farthest, and drop the others.

    Distance is 1 - cosine. The first token is the one whose nearest neighbour is the farthest; a token is chosen once
    (the release may choose one of several equal tokens again and again). Padding comes last.
    Options: features compared: tokens, as published, or keys (mean keys, narrower and cheaper); order of the kept
    tokens: position, as published, or score (as chosen).
    """

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "keep the tokens that lie farthest apart, chosen one by one"
    paper: ClassVar[str] = (
        "Alvar et al., DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, CVPR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "metric")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("DivPrune",)
    drops: ClassVar[bool] = True

    features: str = "tokens"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "features", self.features, FEATURES)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        features = taps.metric() if self.features == "keys" else steps.float_tokens(op, taps)
        index = op(
            "TokenGreedySelect",
            clusters.finite(op, features),
            _shown(op, taps, site),
            keep=site.keep,
            protect=site.protect,
            order=steps.ORDERS[self.order],
            objective=MAX_MIN,
            power=1.0,
            mix=0.0,
            seed=MOST_ISOLATED,
        )
        return steps.pruned(op, taps, site, index)


def _shown(op: Ops, taps: Taps, site: Site) -> Value:
    """Return 1 for a token and 0 for padding: [B,N]."""
    real = steps.sizes(op, taps, site)
    if taps.size is not None:
        real = op("Cast", op("Greater", real, 0.0), to=steps.FLOAT)
    return op("Squeeze", real, np.array([2]))
