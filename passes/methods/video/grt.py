"""GRT: a gate of motion lets those patches through to the embedding whose pixels move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Value
from tokenrt.passes.methods.video.evs import EVS


@dataclass(frozen=True)
class GRT(EVS):
    """Keep the first frame whole, and of all others the patches that moved most: mean difference of pixels to the frame before.

    Tokens are the pixels of each patch in a row, before any embedding, so that what leaves is never embedded. The published gate
    lets patches through above a threshold, and a second, trained stage merges what is left of neighbouring scenes; that is not
    here. Kept tokens ascend. Padding and what is not finite count as black.
    Options: frames F (0: from the grid (F, h, w), else one).
    """

    name: ClassVar[str] = "grt"
    summary: ClassVar[str] = "keep the patches whose pixels move, before they are embedded"
    paper: ClassVar[str] = (
        "Zhang and Fu, Dense Video Understanding with Gated Residual Tokenization, arXiv 2509.14199"
    )
    evidence: ClassVar[Evidence] = "mathematics"
    home: ClassVar[Home] = "input"
    quota: ClassVar[str] = "a fixed count instead of all patches that move more than a threshold"
    pending: ClassVar[str] = (
        "patches leave in front of their embedding, which is what the method saves; that is a convolution over all pixels, which "
        "takes no list of them: the host chooses, for a tower whose input is rows of patches"
    )
    engines: ClassVar[Mapping[str, str]] = {}
    systems: ClassVar[tuple[str, ...]] = ("GRT: the motion gate",)
    deviations: ClassVar[str] = ""

    def change(self, op: Ops, rows: Value, count: int) -> Value:
        now, then = (op("Gather", rows, np.arange(first, first + count - 1), axis=1) for first in (1, 0))
        return op("ReduceMean", op("Abs", op("Sub", now, then)), axes=[3], keepdims=0)
