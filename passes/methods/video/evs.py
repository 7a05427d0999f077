"""EVS: keep the tokens of a video that changed most since the frame before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, frames, steps


@dataclass(frozen=True)
class EVS(Method):
    """Keep the first frame whole, and of all others the tokens least like the token at their place one frame earlier.

    Likeness is the cosine; the frame before counts whether its token stays or not. Kept tokens ascend, and keep the
    positions (rows of a rotary table with time, height and width) they had in the whole grid, for which the host has
    `tokenrt.host`. Of F frames of n tokens the engines keep max(n, floor(F n (1 - rate))). Padding and
    what is not finite count as zero rows, which are like nothing.
    Options: frames F (0: from the grid (F, h, w), else one).
    """

    name: ClassVar[str] = "evs"
    summary: ClassVar[str] = "keep the tokens that changed most since the frame before, and the first frame"
    paper: ClassVar[str] = (
        "Bagrov et al., Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference, arXiv 2510.14624"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {
        "vLLM": "--video-pruning-rate RATE",
        "SGLang": "--json-model-override-args '{\"video_pruning_rate\": RATE}'",
        "TensorRT-LLM": "multimodal_config.video_pruning_rate",
    }
    systems: ClassVar[tuple[str, ...]] = ("EVS",)
    deviations: ClassVar[str] = "the paper compares pixels; this form, like every engine, compares embeddings"

    frames: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each = frames.split(self.name, self.frames, site)
        frames.at_least_whole(self.name, site, each)
        first = site.protect + each
        if site.keep == first:
            return steps.constantly_pruned(op, taps, site, np.arange(first))
        rows = frames.folded(op, taps, site, count)
        score = op("Reshape", self.change(op, rows, count), np.array([-1, (count - 1) * each]))
        rest = op("TokenSelect", score, keep=site.keep - first, protect=0, order=0)
        head = steps.numbered(op, taps.tokens, first)
        return steps.pruned(op, taps, site, op("Concat", head, op("Add", rest, np.array(first)), axis=1))

    def change(self, op: Ops, rows: Value, count: int) -> Value:
        """How much the tokens of all frames but the first, of rows [B,F,n,C], differ from the frame before: [B,F-1,n]."""
        return op("Sub", 1.0, frames.likeness(op, rows, range(1, count), range(count - 1)))

    def laid_out(self, grid: tuple[int, ...] | None) -> EVS:
        return replace(self, frames=self.frames or clips.of_grid(grid))

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + max((tokens - protect) // max(self.frames, 1) if self.frames else 1, 1)
