"""TESTA: merge whole frames that look alike, then similar patches inside each frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, steps

PAPER, REFERENCE = "paper", "reference"
FRAMES, PATCHES, BOTH = "frames", "patches", "both"
HIGHEST, LEAST_SQUARE = 3e38, 1e-38
UNKNOWN = -2.0
"""What a NaN similarity counts as, below every cosine."""


@dataclass(frozen=True)
class TESTA(Method):
    """Merge `remove_frames` of F frames into others, patch by patch, then the patches of each frame left.

    Frames: even ones are sources, odd ones destinations; each patch names the odd frame in which its own place
    is most similar, the frame goes where most patches say (ties: the earlier frame), and the frames whose
    similarity, taken over all patches, is the largest are merged by size-weighted mean. Order: unmerged even
    frames, then odd ones. Patches: ToMe inside every frame, the class token counted into the position of each,
    so the token at i of a frame is a source where P + i is even; order as ToMe's.
    Where attention is divided (TimeSformer) tokens are frames of all places, or places of all frames, and one of the two merges
    is left: frames by the votes of their places, or places that are similar in all frames; `--transformers` says which. For both,
    frames merge in a first run, with `--no-proportional-attention`, and places of its file in a second.
    So the tokens [B,K,C] behind a site are K - P = F' * n': fewer frames of fewer tokens, frame by frame in the
    order named above, and the next site starts from F' frames.
    Options: frames F (0: from the grid, else one); merge: both, frames or patches; remove_frames: how many
    frames leave at a site of merge=both, at most half of them, as a site leaves at least half of the tokens; variant.
    """

    name: ClassVar[str] = "testa"
    summary: ClassVar[str] = "merge frames that look alike, then similar patches inside each frame"
    paper: ClassVar[str] = (
        "Ren et al., TESTA: Temporal-Spatial Token Aggregation for Long-form Video-Language Understanding, Findings of EMNLP 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("TESTA",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "variant=reference ranks frames by the mode of their patches' similarities, as released, which is the "
        "smallest when all differ; variant=paper by the mean. Both merges share one place of a block and its keys; where "
        "attention is divided a run makes one of them, and places merge alike in all frames, so that frames stay aligned"
    )

    frames: int = 0
    merge: str = BOTH
    remove_frames: int = 1
    variant: str = PAPER

    def __post_init__(self) -> None:
        steps.choice(self.name, "merge", self.merge, (BOTH, FRAMES, PATCHES))
        steps.choice(self.name, "variant", self.variant, (PAPER, REFERENCE))
        steps.at_least(self.name, "remove_frames", self.remove_frames, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count = clips.frames(self.name, self.frames, taps, site)
        each = clips.inside(self.name, site, count)
        left, after = self._left(count, each, site)
        clip = clips.start(op, taps, site, taps.metric())
        clip = self._merge_frames(op, clip, clips.Fold(each, count, left, across=True), site)
        order = 0 if site.protect else 1
        clip = clips.merge_inside(op, clip, left, after, site.protect, order)
        return clips.finish(op, taps, site, clip, left)

    @property
    def unit(self) -> int:
        return max(self.frames, 1) if self.merge == PATCHES else 1

    def laid_out(self, grid: tuple[int, ...] | None) -> TESTA:
        return replace(self, frames=self.frames or clips.of_grid(grid))

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + clips.up(kept, self.unit)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + clips.up(tokens - protect - (tokens - protect) // 2, self.unit)

    def _left(self, count: int, each: int, site: Site) -> tuple[int, int]:
        """Frames behind the site, and tokens of each. Raises: PlanError where the counts do not fit."""
        if each == 1 < count:
            left, after = site.keep - site.protect, 1
        elif self.merge == FRAMES and count > 1:
            left, after = clips.staying(self.name, site, each, "places of a frame"), each
        else:
            most = count // 2 if self.merge == BOTH else 0
            left = count - min(self.remove_frames, most)
            after = clips.staying(self.name, site, left, "frames")
        clips.halve(self.name, site, count, left, "frames")
        clips.halve(self.name, site, each, after, "tokens of a frame")
        return left, after

    def _merge_frames(self, op: Ops, clip: clips.Clip, fold: clips.Fold, site: Site) -> clips.Clip:
        if fold.before == fold.after:
            return clip
        removed, evens = fold.before - fold.after, (fold.before + 1) // 2
        places, metric = fold.count, fold.groups(op, clip.metric)
        if places == 1 < site.across:
            places, metric = site.across, _by_place(op, clip.metric, fold.before, site)
        similarity = self._similarity(op, metric, places, fold.before)
        voted = op("ArgMax", similarity, axis=3, keepdims=0)
        odd = np.arange(fold.before // 2)
        votes = op("Cast", op("Equal", op("Unsqueeze", voted, steps.LAST), odd), to=steps.FLOAT)
        goal = op("ArgMax", op("ReduceSum", votes, np.array([1]), keepdims=0), axis=2, keepdims=0)
        best = op("ReduceMax", similarity, axes=[3], keepdims=0)
        score = (
            self._mode(op, best)
            if self.variant == REFERENCE
            else op("ReduceMean", best, axes=[1], keepdims=0)
        )
        ranked = op("TokenSelect", score, keep=evens, protect=0, order=1)
        gone = _columns(op, ranked, 0, removed)
        source = op("Mul", gone, np.array(2))
        slot = op("Add", op("GatherElements", goal, gone, axis=1), np.array(evens - removed))
        keep = self._kept(op, ranked, removed, evens, fold)
        keep, source, slot = (
            _per_place(op, value, fold.count, length)
            for value, length in ((keep, fold.after), (source, removed), (slot, removed))
        )
        return clips.combine(op, clip, keep, source, slot, fold)

    def _similarity(self, op: Ops, metric: Value, places: int, frames: int) -> Value:
        """Cosines [B,n,Fe,Fo] of even and odd frames at each place; metric [B*n,F,D]."""
        square = op("ReduceSum", op("Mul", metric, metric), steps.LAST, keepdims=1)
        unit = op("Div", metric, op("Sqrt", op("Max", square, LEAST_SQUARE)))
        even = op("Gather", unit, np.arange(0, frames, 2), axis=1)
        odd = op("Gather", unit, np.arange(1, frames, 2), axis=1)
        product = op("MatMul", even, op("Transpose", odd, perm=[0, 2, 1]))
        known = op("Where", op("IsNaN", product), UNKNOWN, product)
        return op("Reshape", known, np.array([-1, places, (frames + 1) // 2, frames // 2]))

    def _mode(self, op: Ops, best: Value) -> Value:
        """The most frequent value over places, the smallest of equally frequent ones: [B,n,Fe] -> [B,Fe]."""
        same = op("Equal", op("Unsqueeze", best, np.array([1])), op("Unsqueeze", best, np.array([2])))
        often = op("ReduceSum", op("Cast", same, to=steps.FLOAT), np.array([2]), keepdims=0)
        most = op("Equal", often, op("ReduceMax", often, axes=[1], keepdims=1))
        return op("ReduceMin", op("Where", most, best, HIGHEST), axes=[1], keepdims=0)

    def _kept(self, op: Ops, ranked: Value, removed: int, evens: int, fold: clips.Fold) -> Value:
        """Frames that stay [B,F']: even ones in order of time, then the odd ones."""
        first = op("Mul", _columns(op, ranked, 0, 1), np.array(0))
        odd = op("Add", first, np.arange(1, fold.before, 2)[None])
        if removed == evens:
            return odd
        rest = op("Cast", _columns(op, ranked, removed, evens), to=steps.FLOAT)
        rest, _ = op("TopK", rest, np.array([evens - removed]), axis=1, largest=0)
        return op("Concat", op("Mul", op("Cast", rest, to=7), np.array(2)), odd, axis=1)


def _by_place(op: Ops, metric: Value, frames: int, site: Site) -> Value:
    """[B*W,F,D] from the vectors [B,F,W*D] of frames, in which those of their W places lie side by side."""
    apart = op("Reshape", metric, np.array([0, frames, site.across, site.width]))
    return op("Reshape", op("Transpose", apart, perm=[0, 2, 1, 3]), np.array([-1, frames, site.width]))


def _columns(op: Ops, value: Value, start: int, end: int) -> Value:
    return op("Slice", value, np.array([start]), np.array([end]), np.array([1]))


def _per_place(op: Ops, value: Value, places: int, length: int) -> Value:
    """The same indices for every place: [B,length] -> [B*n,length]."""
    every = op("Add", op("Unsqueeze", value, np.array([1])), np.zeros((1, places, 1), np.int64))
    return op("Reshape", every, np.array([-1, length]))
