"""PixelPrune: patches that their neighbours on the left, above and between tell are not encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, scores, steps


@dataclass(frozen=True)
class PixelPrune(Method):
    """Keep the patches that a prediction misses most, the largest difference of any pixel; the first patch always stays.

    With A on the left, B above and C between, all as they are: B is predicted where C is A and not B, else A; in the first row A,
    in the first column B. "Is" means that no pixel differs by more than `threshold`. A token is the pixels of all patches that
    the tower merges into it, in one row. Where K is the number of patches that differ from their prediction, at threshold 0,
    these are they; the release takes all of them, and above 0 predicts from what it has predicted, one patch after the other,
    which is `tokenrt.host.pixelprune`.
    Options: threshold of equality.
    """

    name: ClassVar[str] = "pixelprune"
    summary: ClassVar[str] = "keep the patches that their neighbours do not tell, before the tower"
    paper: ClassVar[str] = (
        "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding, arXiv 2604.00886"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    home: ClassVar[Home] = "input"
    quota: ClassVar[str] = "the K patches of largest error instead of all that differ from their prediction"
    pending: ClassVar[str] = (
        "patches leave in front of the tower, whose input holds a row for each: the host leaves rows out of it, by "
        "tokenrt.host.pixelprune, and the tower runs as it is"
    )
    engines: ClassVar[Mapping[str, str]] = {"vLLM (pull request)": "pixel_prune_threshold"}
    systems: ClassVar[tuple[str, ...]] = ("PixelPrune",)

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise MethodError(
                f"option threshold={self.threshold} of method {self.name!r}: expected 0 or more"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        if site.grid is None or len(site.grid) != 2:
            raise steps.no_grid(self.name, site)
        rows, columns = site.grid
        patches = clusters.finite(op, clusters.plain(op, taps, site))
        place = np.arange(rows * columns)
        left, above = np.maximum(place - 1, 0), np.maximum(place - columns, 0)
        corner = np.maximum(place - columns - 1, 0)
        a, b, c = (op("Gather", patches, neighbour, axis=1) for neighbour in (left, above, corner))
        level = op("And", _same(op, c, a, self.threshold), op("Not", _same(op, c, b, self.threshold)))
        inside = (place >= columns) & (place % columns > 0)
        takes = op("Or", op("And", level, inside[None]), ((place % columns == 0) & (place > 0))[None])
        guess = op("Where", op("Unsqueeze", takes, steps.LAST), b, a)
        error = scores.numbers(op, _apart(op, patches, guess))
        score = op("Where", (place == 0)[None], scores.ALWAYS, error)
        return scores.pruned(op, taps, site, scores.behind_protected(op, score, site), steps.BY_POSITION)


def _apart(op: Ops, one: Value, other: Value) -> Value:
    """The largest difference of any pixel: [B,T]."""
    return op("ReduceMax", op("Abs", op("Sub", one, other)), axes=[2], keepdims=0)


def _same(op: Ops, one: Value, other: Value, threshold: float) -> Value:
    return op("Not", op("Greater", _apart(op, one, other), threshold))
