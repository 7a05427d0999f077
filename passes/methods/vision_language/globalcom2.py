"""GlobalCom2: the thumbnail's attention steers how many tokens each crop keeps, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, greedy, mosaic, quotas, scores, steps
from tokenrt.passes.methods.parts.mosaic import Mosaic
from tokenrt.passes.methods.parts.quotas import Groups

TEMPERATURE = 10.0
LEAST = 1e-12


@dataclass(frozen=True)
class GlobalCom2(Method):
    """Keep the best floor(R n) tokens of the thumbnail, and of crop p of v tokens floor(v min(1, R (1 + s_p - mean s))).

    The tokens of the thumbnail and the P crops, n each, are one sequence. s is the softmax over crops of a tenth of the sum of
    the thumbnail's scores in their regions. A crop's tokens rank by their own scores, at length one, plus the thumbnail's
    scores there, resized (bilinear) to the crops and at length one too. What is missing to K goes to the largest
    remainders, then to the best other tokens; where it is too much, the lowest leave. Where the picture does not fill the
    crops, tokens of their border take no part. Padding leaves first.
    Options: crops 1 + P (0: from the grid (crops, h, w), which it needs); rows of crops (0: the most square layout); retention R
    (0: K of all tokens that take part); width and height of the picture, for its border (0: none); score: the logarithm of
    class attention, of received (towers without a class token), auto, or importance, an input of the model (as published: the
    class token's logits, averaged over heads, which are that up to a number a crop); order: position, or score (as published,
    crop by crop by falling score).
    """

    name: ClassVar[str] = "globalcom2"
    summary: ClassVar[str] = "let the thumbnail's attention steer how many tokens each crop keeps, and which"
    paper: ClassVar[str] = (
        "Liu et al., Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large "
        "Vision-Language Models, AAAI 2026"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the release rounds every crop's share down, so that the total depends on the picture; here K is fixed"
    )
    home: ClassVar[Home] = "features"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("GlobalCom2",)

    crops: int = 0
    rows: int = 0
    retention: float = 0.0
    width: int = 0
    height: int = 0
    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        for option in ("crops", "rows", "width", "height"):
            steps.at_least(self.name, option, getattr(self, option), 0)
        steps.at_least(self.name, "retention", self.retention, 0)
        steps.choice(self.name, "score", self.score, greedy.HOW)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        layout = self._mosaic(site)
        score = self._score(op, taps, site)
        if layout is None:
            return scores.pruned(op, taps, site, score, self.order)
        kept, own = site.keep - site.protect, steps.free(op, score, site)
        thumbnail = steps.cut(op, own, 0, layout.each)
        crops = steps.cut(op, own, layout.each, site.tokens - site.protect)
        rate = self.retention or kept / (layout.each + sum(layout.valid))
        first = min(int(rate * layout.each), kept)
        share = op("Mul", self._scales(op, thumbnail, rate, layout), np.array(layout.valid, np.float32)[None])
        quota = quotas.whole(op, share, kept - first, layout.crops)
        quota = op("Concat", scores.filled(op, own, float(first), 1), quota, axis=1)
        rated = op("Concat", _unit(op, thumbnail, 1), self._rated(op, thumbnail, crops, layout), axis=1)
        # At length one each and added, scores are 2 at most, and what is selected by is 1.
        rated = scores.behind_protected(op, op("Mul", rated, 0.25), site)
        groups = Groups((layout.each,) * (1 + layout.crops))
        rank = groups.ranks(op, steps.free(op, scores.unpadded(op, taps, rated), site))
        chosen = op("Less", rank, groups.to_tokens(op, quota))
        index = quotas.select(op, taps, site, rated, chosen)
        if self.order == steps.BY_SCORE:
            index = quotas.arranged(op, site, index, op("Add", rank, groups.starts))
        return steps.pruned(op, taps, site, index)

    def _score(self, op: Ops, taps: Taps, site: Site) -> Value:
        """What the tokens of one crop rank by, [B,N]; 0 for padding."""
        score = greedy.importance(op, taps, site, self.score)
        if self.score != greedy.GIVEN:
            score = op("Log", op("Max", score, LEAST))
        score, there = scores.numbers(op, score), scores.present(op, taps)
        return score if there is None else op("Mul", score, there)

    def _mosaic(self, site: Site) -> Mosaic | None:
        """How the crops lie; None where there is only one. Raises: MethodError, PlanError where they do not fit."""
        if site.grid is None:
            raise steps.no_grid(self.name, site)
        height, width = site.grid[-2:]
        tokens, count = site.tokens - site.protect, self.crops or clips.of_grid(site.grid) or 1
        if height * width * count != tokens:
            raise PlanError(f"{self.name}: {tokens} tokens are not {count} crops of {height} x {width}")
        if count == 1:
            return None
        tiles = count - 1
        rows = mosaic.rows_of(self.name, tiles, self.rows)
        if rows > height or tiles // rows > width:
            raise PlanError(
                f"{self.name}: {rows} x {tiles // rows} crops are more than a thumbnail of {height} x {width} shows; set rows"
            )
        return Mosaic.of_picture(rows, tiles // rows, height, width, self.width, self.height)

    def _scales(self, op: Ops, thumbnail: Value, rate: float, layout: Mosaic) -> Value:
        """The share of its tokens that each crop keeps: [B,P]."""
        part = op("Softmax", op("Mul", op("MatMul", thumbnail, layout.regions), 1 / TEMPERATURE), axis=-1)
        return op("Min", op("Mul", op("Add", part, 1 - 1 / layout.crops), rate), 1.0)

    def _rated(self, op: Ops, thumbnail: Value, crops: Value, layout: Mosaic) -> Value:
        """What the crops' tokens rank by inside their crop: [B,P*n]; the lowest number there is for the border."""
        filled = layout.filled[None]
        down, across = layout.enlarging
        grid = op("Reshape", thumbnail, np.array([-1, layout.height, layout.width]))
        large = op("MatMul", op("MatMul", down, grid), across)
        flat = op("Reshape", large, np.array([-1, down.shape[0] * across.shape[1]]))
        both = [
            _unit(op, op("Mul", row, filled.astype(np.float32)), layout.crops)
            for row in (crops, op("Gather", flat, layout.places, axis=1))
        ]
        return op("Where", filled, op("Add", *both), steps.LOWEST)


def _unit(op: Ops, row: Value, groups: int) -> Value:
    """Each group's numbers at length one: [B,T]."""
    folded = op("Reshape", op("Unsqueeze", row, np.array([1])), np.array([0, groups, -1]))
    unit = op("LpNormalization", folded, axis=2, p=2)
    return op("Squeeze", op("Reshape", unit, np.array([0, 1, -1])), np.array([1]))
