"""PruneVid: places that stand still in a segment become one token for all its frames; still and moving ones are clustered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, frames, segments, steps
from tokenrt.passes.methods.parts.segments import Segmented

FEW = 14
"""Up to so many tokens are not clustered."""


@dataclass(frozen=True)
class PruneVid(Segmented):
    """Average the still places of each segment over its frames; cluster them, and the others of each frame.

    The S still places of a segment are those of the highest mean cosine over all pairs of its frames. Clusters are density
    peaks, floor(r m) of m tokens, and up to 14 tokens stay as they are; a cluster becomes its plain mean. The ratio r is the
    one at which all add up to K.
    Output order, as published: protected, then segment by segment the still clusters, which stand in its first frame, and those
    of each frame, by descending score of their centres. Padding is averaged with weight 0.
    This is the stage before the language model; the one inside it, which drops by the attention of the text, is not here.
    Options: frames F (0: from the grid (F, h, w), else one); segments: frames of each, as in 3+5 (empty: about four each);
    still: places of each that stand still, as in 10+14 (empty: the share `share` of them).
    """

    name: ClassVar[str] = "prunevid"
    summary: ClassVar[str] = (
        "average the places that stand still, then cluster those and the others of each frame"
    )
    paper: ClassVar[str] = (
        "Huang et al., PruneVid: Visual Token Pruning for Efficient Video Large Language Models, Findings of ACL 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "segments and their counts of still places are given, where the authors cluster the frames and call still what is "
        "above a mean cosine of 0.8"
    )
    home: ClassVar[Home] = "output"
    systems: ClassVar[tuple[str, ...]] = ("PruneVid: merging before the language model",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each, parts, still = self.layout(site)
        ratio = segments.fitted(self.name, site, self.total(site))
        rows = frames.folded(op, taps, site, count)
        start, slot = 0, 0
        center: list[Value] = []
        assign: list[Value] = []
        for length, held in zip(parts, still, strict=True):
            own = steps.cut(op, rows, start, start + length)
            found = _segment(op, own, Part(start, length, each, held, ratio, slot))
            center, assign = [*center, *found[0]], [*assign, found[1]]
            fixed, moving = self.kept(held, each - held, ratio)
            start, slot = start + length, slot + fixed + length * moving
        return clusters.merged(
            op,
            taps,
            site,
            bipartite.joined(op, center),
            bipartite.joined(op, assign),
            bipartite.counted_once(op, taps, site),
        )

    def kept(self, held: int, others: int, ratio: float) -> tuple[int, int]:
        return clustered(held, ratio), clustered(others, ratio)


def clustered(count: int, ratio: float) -> int:
    """How many of `count` tokens clustering leaves."""
    return count if count <= FEW else max(int(count * ratio), 1)


@dataclass(frozen=True)
class Part:
    """One segment: frames start .. start + length - 1 of n places, S of which stand still; the slot of its first output."""

    start: int
    length: int
    each: int
    held: int
    ratio: float
    slot: int


def _segment(op: Ops, own: Value, part: Part) -> tuple[list[Value], Value]:
    """Centres [B,.], positions among the unprotected tokens, and the slot of each of its tokens [B,F*n]."""
    first = part.start * part.each
    every = steps.numbered(op, own, part.each)
    still = others = every
    if 0 < part.held < part.each:
        still, others = segments.places(op, _likeness(op, own, part.length), part.held, part.each)
    slots = op("Mul", every, 0)
    center: list[Value] = []
    slot = part.slot
    if part.held:
        mean = op("ReduceMean", own, axes=[1], keepdims=0)
        chosen, went = _grouped(op, steps.gather(op, mean, still), part.held, part.ratio)
        center.append(op("Add", op("GatherElements", still, chosen, axis=1), np.array(first)))
        slots = op("ScatterElements", slots, still, op("Add", went, np.array(slot)), axis=1)
        slot += clustered(part.held, part.ratio)
    slots = _repeated(op, slots, part.length, part.each)
    free = part.each - part.held
    if free:
        wide, left = _repeated(op, others, part.length, free), clustered(free, part.ratio)
        flat = op("Reshape", own, np.array([0, part.length * part.each, -1]))
        place = _shifted(op, wide, part.length, free, 0, part.each)
        rows = op("Reshape", steps.gather(op, flat, place), np.array([-1, free, 0]))
        chosen, went = _grouped(op, rows, free, part.ratio)
        at = op("GatherElements", wide, chosen, axis=1)
        center.append(_shifted(op, at, part.length, left, first, part.each))
        went = op("Reshape", _shifted(op, went, part.length, free, slot, left), np.array([-1, free]))
        slots = op("ScatterElements", slots, wide, went, axis=1)
    return center, op("Reshape", slots, np.array([-1, part.length * part.each]))


def _repeated(op: Ops, index: Value, frames: int, count: int) -> Value:
    """Indices [B,m] once for every frame: [B*F,m]."""
    wide = op("Add", op("Unsqueeze", index, np.array([1])), np.zeros((1, frames, 1), np.int64))
    return op("Reshape", wide, np.array([-1, count]))


def _shifted(op: Ops, index: Value, frames: int, count: int, first: int, each: int) -> Value:
    """Indices [B*F,m] of every frame with first + frame * each added: [B,F*m]."""
    split = op("Reshape", index, np.array([-1, frames, count]))
    moved = op("Add", split, (first + np.arange(frames) * each)[None, :, None])
    return op("Reshape", moved, np.array([-1, frames * count]))


def _grouped(op: Ops, rows: Value, count: int, ratio: float) -> tuple[Value, Value]:
    """Centres [B,M] among rows [B,m,C] and the cluster of each."""
    if count <= FEW:
        every = steps.numbered(op, rows, count)
        return every, every
    keep = clustered(count, ratio)
    return segments.peaks(op, rows, count, keep, min(segments.NEIGHBOURS, keep))


def _likeness(op: Ops, rows: Value, length: int) -> Value:
    """Mean cosine of each place over all pairs of frames, of rows [B,F,n,C]: [B,n]."""
    unit = op("LpNormalization", rows, axis=3, p=2)
    total = op("ReduceSum", unit, np.array([1]), keepdims=0)
    whole = op("ReduceSum", op("Mul", total, total), steps.LAST, keepdims=0)
    own = op("ReduceSum", op("Mul", unit, unit), np.array([1, 3]), keepdims=0)
    return op("Mul", op("Sub", whole, own), 1 / (length * (length - 1)))
