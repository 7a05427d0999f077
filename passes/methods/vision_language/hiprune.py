"""HiPrune: anchors of a middle block and their neighbours on the grid, then the best tokens of a deep block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import quotas, scores, steps
from tokenrt.passes.ops.contract import Array

MIDDLE = "middle"
NEIGHBOURS = 5
"""An anchor, and the tokens left, right, above and below."""


@dataclass(frozen=True)
class HiPrune(Method):
    """Keep t = round(alpha K / 5) anchors, their four neighbours on the grid, and of the others the K - |those| best.

    Anchors are the tokens with the most attention received at a middle block, the others are ranked by the attention received
    at the tap block, both averaged over heads and queries. Halves round to even. Kept tokens ascend; padding leaves first.
    Needs the grid.
    Options: alpha; middle: the block of the anchors, 8 as published for LLaVA (16 for Qwen2.5-VL); score: received, as
    published, or class, as AngelSlim has it for LLaVA; anchors: the least there are of them (AngelSlim: 1); variant (see
    deviations).
    """

    name: ClassVar[str] = "hiprune"
    summary: ClassVar[str] = (
        "keep anchors of a middle block with their neighbours, and the best tokens of a deep one"
    )
    paper: ClassVar[str] = (
        "Liu et al., HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models, "
        "arXiv 2508.00553"
    )
    reads: ClassVar[tuple[str, ...]] = ("received_attention", "class_attention", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    layers: ClassVar[tuple[str, ...]] = (MIDDLE,)
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "HiPrune for Gemma 4, the share kept"}
    systems: ClassVar[tuple[str, ...]] = ("HiPrune",)
    deviations: ClassVar[str] = (
        "variant=reference: the releases step by 1 and by the width in the flat list, so that a neighbour at an edge is in the "
        "next row, or the first or last token; variant=paper: neighbours outside the grid do not exist"
    )

    alpha: float = 0.1
    middle: int = 8
    score: str = "received"
    anchors: int = 0
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.at_least(self.name, "alpha", self.alpha, 0)
        steps.at_least(self.name, "anchors", self.anchors, 0)
        steps.choice(self.name, "score", self.score, ("received", "class"))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        deep = steps.importance(op, taps, site, self.score)
        wanted = round(self.alpha * (site.keep - site.protect) / NEIGHBOURS)
        count = min(max(wanted, self.anchors), site.keep - site.protect)
        if not count:
            return scores.pruned(op, taps, site, deep, steps.BY_POSITION)
        middle = steps.importance(op, taps.layer(MIDDLE, self.middle), site, self.score)
        around = self._around(op, steps.free(op, scores.unpadded(op, taps, middle), site), count, site)
        return steps.pruned(op, taps, site, quotas.select(op, taps, site, deep, around))

    def _around(self, op: Ops, middle: Value, count: int, site: Site) -> Value:
        """Which unprotected tokens are anchors or neighbours of one: [B,T] bool."""
        anchors = op("TokenSelect", middle, keep=count, protect=0, order=steps.ORDERS[steps.BY_POSITION])
        near = op("Gather", op.constant(self._neighbours(site)), anchors, axis=0)
        near = op("Reshape", near, np.array([-1, count * NEIGHBOURS]))
        none = scores.filled(op, middle, 0.0, site.tokens - site.protect)
        ones = scores.filled(op, middle, 1.0, count * NEIGHBOURS)
        return op("Greater", op("ScatterElements", none, near, ones, axis=1), 0.5)

    def _neighbours(self, site: Site) -> Array:
        """Each token and its four neighbours [T,5]; for one that is not there the token itself."""
        if site.grid is None:
            raise steps.no_grid(self.name, site)
        height, width = site.grid[-2:]
        place = np.arange(site.tokens - site.protect)[:, None]
        near = place + np.array([0, -1, 1, -width, width])
        if self.variant == scores.REFERENCE:
            return np.asarray(np.clip(near, 0, len(place) - 1))
        row, column = place // width % height, place % width
        there = np.concatenate([row >= 0, column > 0, column < width - 1, row > 0, row < height - 1], axis=1)
        return np.asarray(np.where(there, near, place))
