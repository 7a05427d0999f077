"""ATS: tokens are drawn from the distribution of their significance, by fixed points on its cumulative sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

FILLED, MASKED, REPEATED, TOP = FORMS = ("filled", "masked", "repeated", "top")
PAPER, REFERENCE, TOKEN_REDUCTION = VARIANTS = ("paper", "reference", "tokenreduction")
APART: Mapping[str, float] = {PAPER: 10.0, TOKEN_REDUCTION: 0.1}
"""Added to the cumulative sum at padding: out of reach of every point, or what that release adds."""


@dataclass(frozen=True)
class ATS(Method):
    """Draw tokens by significance: a point on the cumulative sum draws the token whose sum is nearest.

    Significance is class attention times the length of the value (attention received where there is no class
    token), divided by its total. variant=paper, tokenreduction: per head, then summed; sums run in token
    order; points (2k - 1) / 2n. variant=reference: class attention averaged over heads, values of all heads as
    one vector; sums run from the least to the most significant token and are stretched to 0 .. 1; points go
    from the smallest positive sum to 1; of fewer draws than tokens only the most significant can be drawn.

    Two points may draw one token, so the published count depends on the picture. form says what fills the K
    slots: filled: the highest-scoring tokens not drawn (default; K different tokens); masked: nothing: tokens
    drawn come first, in the order of the sums, the other slots are zero with size 0, exact with
    --proportional-attention, which hides them; repeated: a token drawn m times stands m times, which later attention
    counts like one token of size m; top: no draws, the K highest scores.
    Order: filled and top ascending position; masked and repeated in the order of the sums.
    Options: form; variant; samples: points drawn (0: as many as unprotected slots); of tokenreduction the n of its
    points, of which it leaves out the last.
    """

    name: ClassVar[str] = "ats"
    summary: ClassVar[str] = "draw tokens by class attention times value length, spread over its distribution"
    paper: ClassVar[str] = (
        "Fayyaz et al., Adaptive Token Sampling for Efficient Vision Transformers, ECCV 2022"
    )
    reads: ClassVar[tuple[str, ...]] = ("attention", "values", "class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "slots left by tokens drawn twice go to the best tokens not drawn (form=masked leaves them empty)"
    )
    deviations: ClassVar[str] = (
        "paper: scores per head, sums in token order; reference (the authors' code): heads together, sums in sorted order; "
        "tokenreduction: as paper, fewer points, 0.1 added to the sums at padding"
    )

    form: str = FILLED
    variant: str = PAPER
    samples: int = 0

    def __post_init__(self) -> None:
        steps.choice(self.name, "form", self.form, FORMS)
        steps.choice(self.name, "variant", self.variant, VARIANTS)
        if self.samples < 0:
            raise MethodError(
                f"option samples={self.samples} of method {self.name!r}: expected 0 or more points"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = self._significance(op, taps, site)
        if self.form == TOP:
            return scores.pruned(op, taps, site, scores.behind_protected(op, score, site), steps.BY_POSITION)
        count = site.tokens - site.protect
        order = None
        if self.variant == REFERENCE:
            score, order = op("TopK", score, np.array([count]), axis=1, largest=0)
        sums = op("CumSum", score, np.array(1))
        draws = self._stretched(op, sums, site) if order is not None else self._in_order(op, taps, sums, site)
        if self.form == REPEATED:
            return self._repeated(op, taps, site, draws, order)
        drawn = op("Equal", op("Unsqueeze", draws, steps.LAST), np.arange(count)[None, None])
        hit = op("ReduceMax", op("Cast", drawn, to=steps.FLOAT), axes=[1], keepdims=0)
        if self.form == MASKED:
            return self._masked(op, taps, site, hit, order)
        rated = op("Add", op("Mul", hit, 2.0), score)
        if order is not None:
            rated = op("ScatterElements", rated, order, rated, axis=1)
        return scores.pruned(op, taps, site, scores.behind_protected(op, rated, site), steps.BY_POSITION)

    def _significance(self, op: Ops, taps: Taps, site: Site) -> Value:
        """[B,T] scores of the unprotected tokens that add up to 1."""
        values = taps.values()
        square = op("Mul", values, values)
        if self.variant == REFERENCE:
            length = op("Sqrt", op("ReduceSum", square, np.array([1, 3]), keepdims=0))
            score = op("Mul", steps.importance(op, taps, site, "auto"), length)
        else:
            length = op("Sqrt", op("ReduceSum", square, np.array([3]), keepdims=0))
            score = op("ReduceSum", op("Mul", self._rows(op, taps, site), length), np.array([1]), keepdims=0)
        score = op("Max", scores.numbers(op, score), 0.0)
        there = None if self.variant == TOKEN_REDUCTION else scores.present(op, taps)
        score = steps.free(op, score if there is None else op("Mul", score, there), site)
        total = op("ReduceSum", score, np.array([1]), keepdims=1)
        least = (
            op("Add", total, 1e-6) if self.variant == TOKEN_REDUCTION else op("Max", total, scores.EPSILON)
        )
        return op("Div", score, least)

    def _rows(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Attention of the class token, else the mean attention received, by head: [B,H,N]."""
        if site.class_token:
            return op("Squeeze", steps.cut(op, taps.attention(), 0, 1, 2), np.array([2]))
        attention = taps.attention()
        there = scores.present(op, taps)
        if there is None:
            return op("ReduceMean", attention, axes=[2], keepdims=0)
        # Only words ask; the total of the scores is taken out later, so their number does not matter.
        return op("Squeeze", op("MatMul", op("Unsqueeze", there, np.array([1, 2])), attention), np.array([2]))

    def _points(self, site: Site) -> tuple[int, int]:
        """Points drawn, and the n that spaces them."""
        slots = site.keep - site.protect
        if self.variant == TOKEN_REDUCTION:
            count = self.samples or slots + 1
            # The release lists them with this very range, whose rounding now and then lets the last one in.
            listed = np.arange(1 / (2 * count), (2 * count - 1) / (2 * count), 1 / count)
            return (max(len(listed), 1) if self.samples else slots), count
        return (self.samples or slots,) * 2

    def _in_order(self, op: Ops, taps: Taps, sums: Value, site: Site) -> Value:
        """Places drawn [B,S] when sums run in token order."""
        there = scores.present(op, taps)
        if there is not None:
            away = op("Mul", op("Sub", 1.0, steps.free(op, there, site)), APART[self.variant])
            sums = op("Add", sums, away)
        drawn, spaced = self._points(site)
        points = (2 * np.arange(drawn) + 1) / (2 * spaced)
        return _nearest(op, sums, op.constant(points.astype(np.float32)[None, :, None]))

    def _stretched(self, op: Ops, sums: Value, site: Site) -> Value:
        """Places drawn [B,S] among the sorted tokens, when sums run from the least significant up."""
        count, drawn = site.tokens - site.protect, self._points(site)[0]
        first = steps.cut(op, sums, 0, 1)
        span = op("Sub", steps.cut(op, sums, count - 1, count), first)
        even = op("Div", op("Sub", sums, first), op("Max", span, scores.EPSILON))
        start = op("ReduceMin", op("Where", op("Greater", even, 0.0), even, 1.0), axes=[1], keepdims=1)
        step = np.arange(drawn, dtype=np.float32)[None] / max(drawn - 1, 1)
        points = op("Add", start, op("Mul", op("Sub", 1.0, start), step))
        skipped = max(count - drawn, 0)
        near = _nearest(op, steps.cut(op, even, skipped, count), op("Unsqueeze", points, steps.LAST))
        return op("Add", near, np.array(skipped))

    def _repeated(self, op: Ops, taps: Taps, site: Site, draws: Value, order: Value | None) -> Reduction:
        slots, drawn = site.keep - site.protect, self._points(site)[0]
        if drawn != slots:
            raise MethodError(
                f"option form=repeated of method {self.name!r} fills {slots} slots with as many draws, "
                f"got samples={self.samples}; leave samples out"
            )
        index = self._index(op, taps, site, draws, order)
        kept = steps.pruned(op, taps, site, index)
        return Reduction(kept.tokens, kept.size, index, scores.last_slot(op, index, site, site.keep))

    def _masked(self, op: Ops, taps: Taps, site: Site, hit: Value, order: Value | None) -> Reduction:
        count, slots = site.tokens - site.protect, site.keep - site.protect
        # Earlier places rate higher, places not drawn 0.
        ahead = op("Mul", hit, np.arange(count, 0, -1, dtype=np.float32)[None])
        place = op("TokenSelect", ahead, keep=slots, protect=0, order=steps.ORDERS[steps.BY_SCORE])
        index = self._index(op, taps, site, place, order)
        filled = scores.gather_row(op, hit, place)
        if site.protect:
            filled = op("Concat", scores.filled(op, hit, 1.0, site.protect), filled, axis=1)
        column = op("Unsqueeze", filled, steps.LAST)
        size = column if taps.size is None else op("Mul", steps.gather(op, taps.size, index), column)
        tokens = steps.gather(op, taps.tokens, index)
        there = op("Greater", column, 0.0)
        tokens = op("Where", there, tokens, op("CastLike", op.constant(np.zeros(1, np.float32)), tokens))
        slot = op("Where", op("Squeeze", there, steps.LAST), np.arange(site.keep)[None], steps.DROPPED)
        nowhere = op(
            "Expand",
            op.constant(np.full((1, 1), steps.DROPPED)),
            steps.batch_shape(op, tokens, site.tokens),
        )
        return Reduction(tokens, size, index, op("ScatterElements", nowhere, index, slot, axis=1))

    def _index(self, op: Ops, taps: Taps, site: Site, place: Value, order: Value | None) -> Value:
        """Positions [B,K] of the protected tokens and of those at these places of the sums."""
        token = place if order is None else scores.gather_row(op, order, place)
        if not site.protect:
            return token
        first = steps.numbered(op, taps.tokens, site.protect)
        return op("Concat", first, op("Add", token, np.array(site.protect)), axis=1)


def _nearest(op: Ops, sums: Value, points: Value) -> Value:
    """The place of the sum nearest to each point, the first of equals: sums [B,T], points [B,S,1] -> [B,S]."""
    away = op("Abs", op("Sub", op("Unsqueeze", sums, np.array([1])), points))
    return op("ArgMin", away, axis=2, keepdims=0)
