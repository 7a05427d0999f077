"""HoliTom: still places of a segment become one token for all its frames and are clustered; of the others the best stay."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, frames, greedy, scores, segments, steps
from tokenrt.passes.methods.parts.segments import Segmented

BETA, MEAN = "beta", "mean"


@dataclass(frozen=True)
class HoliTom(Segmented):
    """Average the still places of a segment over its frames, cluster them, and keep the best of the others in each frame.

    The S still places of a segment are those whose least cosine from one frame to the next is the largest. Their means are
    clustered by density peaks, round(S r) of them, and each cluster becomes its centre's mean, 0.6 of it beside 0.4 of the mean
    of the others, or the plain mean. Of the other n - S places ceil((n - S) r) stay in each frame, by attention. The ratio r
    is the one at which all add up to K.
    Output order, as published: protected, then segment by segment its clusters by ascending place, which stand in its first
    frame, and its frames. Padding counts as zero rows and is the last to stay.
    Options: frames F (0: from the grid (F, h, w), else one); segments: frames of each, as in 3+5 (empty: about four each);
    still: places of each that stand still, as in 10+14 (empty: the share `share` of them); mix: beta or mean; beta; score of
    the moving tokens: auto, class, received or importance (an input of the model).
    """

    name: ClassVar[str] = "holitom"
    summary: ClassVar[str] = "average and cluster the places that stand still, keep the best of the others"
    paper: ClassVar[str] = (
        "Shao et al., HoliTom: Holistic Token Merging for Fast Video Large Language Models, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = (
        "tokens",
        "class_attention",
        "received_attention",
        "importance",
        "grid",
    )
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "segments and their counts of still places are given, where the authors find the segments by dynamic programming and "
        "call still what stays above a cosine of 0.8"
    )
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    systems: ClassVar[tuple[str, ...]] = ("HoliTom: merging before the language model",)

    mix: str = BETA
    beta: float = 0.6
    score: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.choice(self.name, "mix", self.mix, (BETA, MEAN))
        steps.choice(self.name, "score", self.score, greedy.HOW)
        if not 0 <= self.beta <= 1:
            raise MethodError(f"option beta={self.beta} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each, parts, still = self.layout(site)
        rows = frames.folded(op, taps, site, count)
        score = scores.numbers(op, greedy.importance(op, taps, site, self.score))
        rated = op(
            "Reshape", steps.free(op, scores.unpadded(op, taps, score), site), np.array([-1, count, each])
        )
        ratio = segments.fitted(self.name, site, self.total(site))
        start, slot, made = 0, site.protect, []
        for length, held in zip(parts, still, strict=True):
            fixed, moving = self.kept(held, each - held, ratio)
            span = Span(site.protect, start, length, each, held, fixed, moving, slot)
            made.append(self._segment(op, taps, rows, rated, span))
            start, slot = start + length, slot + fixed + length * moving
        return _joined(op, taps, site, made)

    def kept(self, held: int, others: int, ratio: float) -> tuple[int, int]:
        return round(held * ratio), ceil(others * ratio)

    def _segment(self, op: Ops, taps: Taps, rows: Value, rated: Value, span: Span) -> Made:
        own, score = (steps.cut(op, value, span.start, span.start + span.length) for value in (rows, rated))
        still, others = span.split(op, own)
        tokens: list[Value] = []
        position: list[Value] = []
        went: Value = op(
            "Expand", op.constant(np.full((1, 1), steps.DROPPED)), steps.batch_shape(op, rows, span.each)
        )
        if span.fixed:
            mean = op("ReduceMean", own, axes=[1], keepdims=0)
            held = steps.gather(op, mean, still)
            center, assign = segments.ascending_peaks(
                op, held, span.held, span.fixed, min(segments.NEIGHBOURS, span.fixed)
            )
            blended = self._blended(op, held, center, assign, span)
            tokens.append(op("CastLike", blended, taps.tokens))
            position.append(op("Add", op("GatherElements", still, center, axis=1), np.array(span.first)))
            went = op("ScatterElements", went, still, op("Add", assign, np.array(span.slot)), axis=1)
        went = op("Concat", *[went] * span.length, axis=1) if span.length > 1 else went
        if span.moving:
            place = _best(op, score, others, span)
            position.append(op("Add", place, np.array(span.first)))
            tokens.append(steps.gather(op, taps.tokens, position[-1]))
            slots = np.arange(span.length * span.moving)[None] + span.slot + span.fixed
            every = op("Expand", op.constant(slots), steps.batch_shape(op, rows, slots.size))
            went = op("ScatterElements", went, place, every, axis=1)
        return Made(tokens, position, went)

    def _blended(self, op: Ops, rows: Value, center: Value, assign: Value, span: Span) -> Value:
        """Clusters [B,Z,C] of rows [B,S,C]: the centre, and what share of the way to the others' mean."""
        member = op("Cast", clusters.members(op, assign, span.fixed), to=steps.FLOAT)
        itself = op("Equal", op("Unsqueeze", center, steps.LAST), np.arange(span.held)[None, None])
        other = op("Sub", member, op("Cast", itself, to=steps.FLOAT))
        count = op("ReduceSum", other, steps.LAST, keepdims=1)
        near = steps.gather(op, rows, center)
        apart = op("Sub", op("Div", op("MatMul", other, rows), op("Max", count, 1.0)), near)
        whole = op("Div", count, op("Add", count, 1.0))
        share = whole if self.mix == MEAN else op("Where", op("Greater", count, 0.0), 1 - self.beta, 0.0)
        return op("Add", near, op("Where", op("Greater", count, 0.0), op("Mul", apart, share), 0.0))


@dataclass(frozen=True)
class Span:
    """One segment: frames start .. start + length - 1 of n places, S of which stand still; where its outputs begin."""

    protect: int
    start: int
    length: int
    each: int
    held: int
    fixed: int
    moving: int
    slot: int

    @property
    def first(self) -> int:
        """The position of its first token."""
        return self.protect + self.start * self.each

    def split(self, op: Ops, rows: Value) -> tuple[Value, Value]:
        """Still and other places: [B,S] and [B,n-S]."""
        every = steps.numbered(op, rows, self.each)
        if self.held in (0, self.each):
            return every, every
        alike = frames.likeness(op, rows, range(1, self.length), range(self.length - 1))
        return segments.places(op, op("ReduceMin", alike, axes=[1], keepdims=0), self.held, self.each)


@dataclass(frozen=True)
class Made:
    """What a segment becomes: pieces of tokens and positions, and where each of its tokens went [B,F*n]."""

    tokens: list[Value]
    position: list[Value]
    assign: Value


def _best(op: Ops, score: Value, others: Value, span: Span) -> Value:
    """The places [B,F*D], counted from the segment's first token, of the best of the other places of each frame."""
    free = span.each - span.held
    wide = op("Expand", op("Unsqueeze", others, np.array([1])), np.array([1, span.length, free]))
    own = op("GatherElements", score, wide, axis=2)
    flat = op("Reshape", own, np.array([-1, free]))
    chosen = op("TokenSelect", flat, keep=span.moving, protect=0, order=0)
    chosen = op("Reshape", chosen, np.array([-1, span.length, span.moving]))
    place = op("GatherElements", wide, chosen, axis=2)
    place = op("Add", place, (np.arange(span.length) * span.each)[None, :, None])
    return op("Reshape", place, np.array([-1, span.length * span.moving]))


def _joined(op: Ops, taps: Taps, site: Site, made: list[Made]) -> Reduction:
    tokens = [piece for part in made for piece in part.tokens]
    position = [piece for part in made for piece in part.position]
    assign = [part.assign for part in made]
    if site.protect:
        head = steps.numbered(op, taps.tokens, site.protect)
        tokens.insert(0, steps.cut(op, taps.tokens, 0, site.protect))
        position.insert(0, head)
        assign.insert(0, head)
    went = op("Concat", *assign, axis=1) if len(assign) > 1 else assign[0]
    return Reduction(
        op("Concat", *tokens, axis=1) if len(tokens) > 1 else tokens[0],
        clusters.collected(op, steps.sizes(op, taps, site), went, site.keep),
        op("Concat", *position, axis=1) if len(position) > 1 else position[0],
        went,
    )
