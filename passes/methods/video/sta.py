"""STA: walk through groups of frames and drop the tokens that repeat what the group before showed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, steps

FORWARD, BACKWARD, AUTO = "forward", "backward", "auto"
WALKS = {FORWARD: False, BACKWARD: True}
LEAST, MOST = 1e-30, 3e38
UNKNOWN = -2.0
"""What a NaN similarity counts as, below every cosine."""


@dataclass(frozen=True)
class STA(Method):
    """Keep n - r tokens of each of G groups of frames: the least predictable from the group before, by saliency.

    Saliency c: the L1 norm of a token, scaled to 0 .. 1 inside its group; NaN counts as 0. First group of the
    walk: odd tokens, then even ones by ascending best cosine to an odd one; the last r leave. Every other:
    A = softmax over its own tokens of the cosines to the kept tokens of the group before (all of the first
    group), g = A times that group's g (ones at first), and the n - r smallest g (1 - c) stay; g of the kept
    is scaled to sum 1. No token is merged.
    Output: protected, then the groups in order of time; inside a group the order named above, as published.
    Options: frames F (0: from the grid, else one); groups (0: F, F/2 and F/4 in the three thirds of the
    blocks, as published for eight frames); walk: forward, backward or auto, backward in the middle third.
    Published sites: behind blocks 0, L/3 and 2L/3 (`--site after-block --layers 0,4,8`).
    Where attention is divided, tokens are places of all frames, or frames of all places: one group, in which nothing accumulates.
    """

    name: ClassVar[str] = "sta"
    summary: ClassVar[str] = (
        "drop the tokens of each group of frames that the group before predicts and that are not salient"
    )
    paper: ClassVar[str] = (
        "Ding et al., Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation (STA), ICCV 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("STA",)
    drops: ClassVar[bool] = True

    frames: int = 0
    groups: int = 0
    walk: str = AUTO

    def __post_init__(self) -> None:
        steps.choice(self.name, "walk", self.walk, (FORWARD, BACKWARD, AUTO))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count = clips.frames(self.name, self.laid_out(site.grid).frames, taps, site)
        third = (site.block >= site.blocks // 3) + (site.block >= 2 * site.blocks // 3)
        groups = self.groups or max(count >> third, 1)
        before, after = clips.inside(self.name, site, groups), clips.staying(self.name, site, groups)
        metric = _unit(op, steps.free(op, taps.metric(), site))
        tokens = op("Cast", steps.free(op, taps.tokens, site), to=steps.FLOAT)
        novelty = _novelty(op, tokens, groups, before)
        backward = WALKS.get(self.walk, third == 1)
        kept: dict[int, Value] = {}
        previous: Value = None
        share: Value = None
        for step, group in enumerate(reversed(range(groups)) if backward else range(groups)):
            own = _rows(op, metric, group * before, before)
            if step == 0:
                kept[group], previous = _first(op, own, before, after), own
                continue
            accumulated = _accumulated(op, own, previous, share)
            score = op("Mul", accumulated, _rows(op, novelty, group, 1, flat=True))
            kept[group] = op("TokenSelect", op("Neg", score), keep=after, protect=0, order=1)
            previous = steps.gather(op, own, kept[group])
            chosen = op("GatherElements", accumulated, kept[group], axis=1)
            total = op("Max", op("ReduceSum", chosen, np.array([1]), keepdims=1), LEAST)
            share = op("Unsqueeze", op("Div", chosen, total), steps.LAST)
        index = [op("Add", kept[group], np.array(site.protect + group * before)) for group in range(groups)]
        head = [steps.numbered(op, taps.tokens, site.protect)] if site.protect else []
        pruned = steps.pruned(op, taps, site, op("Concat", *head, *index, axis=1))
        return replace(pruned, state=clips.state(op, count))

    @property
    def unit(self) -> int:
        return max(self.frames, 1)

    def laid_out(self, grid: tuple[int, ...] | None) -> STA:
        return replace(self, frames=self.frames or clips.of_whole_frames(grid))

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + clips.up(kept, self.unit)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + self.unit


def _unit(op: Ops, metric: Value) -> Value:
    """Rows of length 1: [B,M,D]; a zero row stays zero."""
    square = op("ReduceSum", op("Mul", metric, metric), steps.LAST, keepdims=1)
    return op("Div", metric, op("Sqrt", op("Max", square, LEAST)))


def _rows(op: Ops, value: Value, start: int, count: int, flat: bool = False) -> Value:
    """Rows start .. start+count-1 of axis 1; `flat` drops that axis."""
    cut = op("Slice", value, np.array([start]), np.array([start + count]), np.array([1]))
    return op("Squeeze", cut, np.array([1])) if flat else cut


def _novelty(op: Ops, tokens: Value, groups: int, each: int) -> Value:
    """1 - c [B,G,n] of tokens [B,M,C]."""
    norm = op("ReduceSum", op("Abs", tokens), steps.LAST, keepdims=0)
    norm = op("Where", op("IsNaN", norm), 0.0, op("Min", norm, MOST))
    norm = op("Reshape", norm, np.array([-1, groups, each]))
    least = op("ReduceMin", norm, axes=[2], keepdims=1)
    span = op("Sub", op("ReduceMax", norm, axes=[2], keepdims=1), least)
    return op("Sub", 1.0, op("Div", op("Sub", norm, least), op("Max", span, LEAST)))


def _similarity(op: Ops, left: Value, right: Value) -> Value:
    product = op("MatMul", left, op("Transpose", right, perm=[0, 2, 1]))
    return op("Where", op("IsNaN", product), UNKNOWN, product)


def _first(op: Ops, own: Value, before: int, after: int) -> Value:
    """The kept tokens [B,n'] of the first group."""
    even, odd = np.arange(0, before, 2), np.arange(1, before, 2)
    similarity = _similarity(op, op("Gather", own, even, axis=1), op("Gather", own, odd, axis=1))
    best = op("ReduceMax", similarity, axes=[2], keepdims=0)
    ranked = op("TokenSelect", op("Neg", best), keep=len(even), protect=0, order=1)
    fixed = op("Add", op("Mul", _rows(op, ranked, 0, 1), np.array(0)), odd[None])
    listed = op("Concat", fixed, op("Mul", ranked, np.array(2)), axis=1)
    return _rows(op, listed, 0, after)


def _accumulated(op: Ops, own: Value, previous: Value, share: Value | None) -> Value:
    """How much of the group before arrives at each token: [B,n]."""
    arrives = op("Softmax", _similarity(op, own, previous), axis=1)
    if share is None:
        return op("ReduceSum", arrives, steps.LAST, keepdims=0)
    return op("Squeeze", op("MatMul", arrives, share), steps.LAST)
