"""VidCom2: keep the tokens far from their video's and their frame's centre, more of them of frames that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, frames, quotas, scores, steps

DECAYS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""1 / (2 a) of the five widths a of the Gaussian similarity."""

TEMPERATURE = 0.01
LEAST = 1e-12
BEHIND = 32.0
"""Times the largest score (10) is beyond every score, times the smallest (0.7) too; a power of two, so no digit is lost."""


@dataclass(frozen=True)
class VidCom2(Method):
    """Keep in each frame the tokens least like the centres of the video and of the frame, and K in all.

    Rows are of length one over the floor(C/2) channels of least variance; a centre is a mean of rows. Likeness to one is the
    sum of exp(-d^2 / 2a) over a = 1/8 .. 2; a token's score is its likeness to both centres. Frames get shares by a softmax,
    temperature 0.01, over how unlike the video's centre they are: k_t = round(n min(b (1 + p_t - 1/F), 1)), at least 1. Each
    frame keeps its k_t lowest scores; then over all frames the highest scores of those leave, or the lowest of the rest
    join, until K are left. Kept tokens ascend. Padding leaves first, and no mean or variance counts it.
    Options: frames F (0: from the grid (F, h, w), else one); retention b, of which the engine's option makes
    K = max(F, floor(F n b)) (0: K / (F n)).
    """

    name: ClassVar[str] = "vidcom2"
    summary: ClassVar[str] = (
        "keep the tokens far from the centres of video and frame, by a share of each frame"
    )
    paper: ClassVar[str] = (
        "Liu et al., Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models, "
        "EMNLP 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the authors keep the sum of the frames' shares, which depends on the data; here K is fixed, as in vLLM, and where "
        "their sum is K both keep the same tokens"
    )
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "--video-retention-ratio RATIO"}
    systems: ClassVar[tuple[str, ...]] = ("VidCom2",)

    frames: int = 0
    retention: float = 0.0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        if not 0 <= self.retention <= 1:
            raise MethodError(f"option retention={self.retention} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each = frames.split(self.name, self.frames, site)
        rows = frames.folded(op, taps, site, count)
        there = frames.present(op, taps, site, count)
        unit = _narrowed(op, rows, there, site, count * each)
        video = _likeness(op, unit, _mean(op, unit, there, [1, 2], count * each))
        score = op("Add", video, _likeness(op, unit, _mean(op, unit, there, [2], each)))
        if there is not None:
            score = op("Where", op("Greater", there, 0.0), score, BEHIND)
        rate = self.retention or (site.keep - site.protect) / (count * each)
        share = _shares(op, video, there, rate, count, each)
        chosen = op("Less", quotas.ranks(op, op("Neg", score), each), share)
        ranked = op("Neg", op("Where", chosen, score, op("Mul", score, BEHIND)))
        flat = op("Reshape", ranked, np.array([-1, count * each]))
        return scores.pruned(op, taps, site, scores.behind_protected(op, flat, site), steps.BY_POSITION)

    def laid_out(self, grid: tuple[int, ...] | None) -> VidCom2:
        return replace(self, frames=self.frames or clips.of_grid(grid))


def _mean(op: Ops, rows: Value, there: Value | None, axes: list[int], count: int) -> Value:
    """Mean of rows [B,F,n,C] over some axes, of those that are there."""
    total = op("ReduceSum", rows, np.array(axes), keepdims=1)
    if there is None:
        return op("Mul", total, 1 / count)
    number = op("ReduceSum", op("Unsqueeze", there, steps.LAST), np.array(axes), keepdims=1)
    return op("Div", total, op("Max", number, 1.0))


def _narrowed(op: Ops, rows: Value, there: Value | None, site: Site, count: int) -> Value:
    """Rows of length one over the half of the channels with the least variance, 0 in the others."""
    if site.channels is None or site.channels < 2:
        raise MethodError(
            f"method 'vidcom2' needs tokens of 2 channels or more, got {site.channels or 'unknown'}"
        )
    apart = op("Sub", rows, _mean(op, rows, there, [1, 2], count))
    if there is not None:
        apart = op("Mul", apart, op("Unsqueeze", there, steps.LAST))
    spread = op("ReduceSum", op("Mul", apart, apart), np.array([1, 2]), keepdims=0)
    half = site.channels // 2
    _, steady = op("TopK", spread, np.array([half]), axis=1, largest=0)
    none, one = scores.filled(op, spread, 0.0, site.channels), scores.filled(op, spread, 1.0, half)
    mask = op("Unsqueeze", op("ScatterElements", none, steady, one, axis=1), np.array([1, 2]))
    narrow = op("Mul", rows, mask)
    square = op("ReduceSum", op("Mul", narrow, narrow), steps.LAST, keepdims=1)
    return op("Div", narrow, op("Max", op("Sqrt", square), LEAST))


def _likeness(op: Ops, unit: Value, center: Value) -> Value:
    """Sum of the five Gaussians of the distance of each row to its centre: [B,F,n]."""
    apart = op("Sub", unit, center)
    square = op("ReduceSum", op("Mul", apart, apart), steps.LAST, keepdims=1)
    decays = -np.array(DECAYS, np.float32)
    return op("ReduceSum", op("Exp", op("Mul", square, decays)), steps.LAST, keepdims=0)


def _shares(op: Ops, video: Value, there: Value | None, rate: float, count: int, each: int) -> Value:
    """How many tokens each frame keeps before the total is seen to: [B,F,1]."""
    if there is None:
        alike = op("Mul", op("ReduceSum", video, steps.LAST, keepdims=1), 1 / each)
    else:
        number = op("Max", op("ReduceSum", there, steps.LAST, keepdims=1), 1.0)
        alike = op("Div", op("ReduceSum", op("Mul", video, there), steps.LAST, keepdims=1), number)
    part = op("Softmax", op("Mul", alike, -1 / TEMPERATURE), axis=1)
    share = op("Min", op("Mul", op("Add", part, 1 - 1 / count), rate), 1.0)
    return op("Max", op("Round", op("Mul", share, float(each))), 1.0)
