"""MCTF: merge tokens that are similar, uninformative and small, from both sides of a bipartition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, scores, steps
from tokenrt.passes.methods.parts.bipartite import Pairs

LEAST = 1e-12
"""Floor of attention and size before they are inverted."""

LEAST_LENGTH = 1e-19
"""Floor of a token's length, so that the cosine of a zero token is 0."""

RAISED = 1e38
"""Above every criterion but that of padding, which leaves first."""
UNKNOWN = -1.0
"""What a NaN counts as: below every product of criteria."""

ROWS = np.array([-1])


@dataclass(frozen=True)
class MCTF(Method):
    """Merge the R pairs that rank highest by similarity x uninformativeness x smallness.

    W_ij = ((cos(x_i,x_j) + 1)/2)^(1/tau_sim) (a_i a_j)^(1/tau_info) (s_i s_j)^(1/tau_size), a and s the inverse attention
    received and inverse size, each divided by its maximum; a tau of 0 leaves its factor out. In a first round the best
    R/2 (rounded down) even tokens join their best odd one; in a second the best odd tokens, with all they have absorbed,
    join their best of the even ones left, until R have gone. The scores are computed once. Output order: protected, even tokens
    (ascending; by descending score where nothing is protected), odd tokens by descending score of the second round.
    Options: tau_sim, tau_info, tau_size; bidirectional: false for the first round alone, with ToMe's order; pooling:
    attention (weights attention received x size, as published), size, mean or max; reuse: hand the merged attention
    [B,H,K,K] on as state "attention" (rows pooled like tokens, columns summed); variant: reference
    protects the first P even tokens instead of the first P tokens.
    """

    name: ClassVar[str] = "mctf"
    summary: ClassVar[str] = "merge pairs chosen by similarity, informativeness and size, in both directions"
    paper: ClassVar[str] = "Lee et al., Multi-criteria Token Fusion with One-step-ahead Attention, CVPR 2024"
    reads: ClassVar[tuple[str, ...]] = ("received_attention", "attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("MCTF",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "the paper fuses inside the attention, before its values are summed, here fusion follows the residual; with two "
        "protected tokens the release protects tokens 0 and 2 (variant=reference) instead of 0 and 1 (variant=paper)"
    )

    tau_sim: float = 1.0
    tau_info: float = 20.0
    tau_size: float = 40.0
    bidirectional: bool = True
    pooling: str = "attention"
    reuse: bool = False
    variant: str = "paper"

    def __post_init__(self) -> None:
        steps.choice(self.name, "pooling", self.pooling, ("attention", "size", "mean", "max"))
        steps.choice(self.name, "variant", self.variant, ("paper", "reference"))
        for option in ("tau_sim", "tau_info", "tau_size"):
            if not getattr(self, option) >= 0:
                raise MethodError(
                    f"option {option}={getattr(self, option)} of method {self.name!r}: expected 0 or more"
                )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        others = [*range(site.protect)]
        even, odd = bipartite.sides(site.protect, site.tokens)
        if self.variant == "reference":
            others = [2 * place for place in others]
            even, odd = ([*range(start, site.tokens, 2)] for start in (2 * site.protect, 1))
        received = None
        if self.tau_info or self.pooling == "attention":
            received = op("Unsqueeze", taps.received_attention(), steps.LAST)
        criteria = self._criteria(op, taps, site, received, even, odd)
        pairs = self._pairs(op, taps, site, criteria, others, even, odd)
        size = steps.sizes(op, taps, site)
        weight = self._weight(op, taps, site, received)
        tokens = self._pooled(op, taps.tokens, weight, pairs)
        total = bipartite.total(op, size, pairs)
        assign = bipartite.went(op, taps.tokens, pairs, site.keep, site)
        state = {"attention": self._attention(op, taps, site, weight, pairs, assign)} if self.reuse else {}
        return Reduction(tokens, total, pairs.keep, assign, state=state)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // 2

    def _criteria(
        self,
        op: Ops,
        taps: Taps,
        site: Site,
        received: Value | None,
        even: Sequence[int],
        odd: Sequence[int],
    ) -> Value:
        """W [B,S,T] of even with odd tokens, no entry NaN."""
        factor = self._factor(op, taps, site, received)
        if not self.tau_sim:
            one = op.constant(np.ones((1, len(even), len(odd)), np.float32))
            pair = op("Expand", one, steps.batch_shape(op, taps.tokens, len(even), len(odd)))
        else:
            wide = steps.float_tokens(op, taps)
            inverse = op("Div", 1.0, op("Max", steps.lengths(op, wide), LEAST_LENGTH))
            dot = _outer(op, wide, even, odd)
            # The scaling is halved on one side, for (cos + 1)/2.
            half = _scaled(op, dot, op("Mul", inverse, 0.5), even, inverse, odd)
            pair = _root(op, op("Max", op("Add", half, 0.5), 0.0), self.tau_sim)
        if factor is not None:
            pair = _scaled(op, pair, factor, even, factor, odd)
        pair = op("Where", op("IsNaN", pair), UNKNOWN, pair)
        there = scores.present(op, taps)
        if there is None:
            return pair
        # Padding leaves first, and no word goes where padding stands.
        rows, columns = (op("Gather", there, np.array(side), axis=1) for side in (even, odd))
        pair = op("Where", op("Greater", op("Unsqueeze", columns, np.array([1])), 0.0), pair, steps.LOWEST)
        return op("Where", op("Greater", op("Unsqueeze", rows, steps.LAST), 0.0), pair, -steps.LOWEST)

    def _factor(self, op: Ops, taps: Taps, site: Site, received: Value | None) -> Value | None:
        """What a token contributes to the criteria of all its pairs, (a_i)^(1/tau_info) (s_i)^(1/tau_size): [B,N,1]."""
        shares = []
        if self.tau_info:
            shares.append((received, self.tau_info))
        if self.tau_size and taps.size is not None:
            shares.append((taps.size, self.tau_size))
        factor = None
        for amount, tau in shares:
            inverse = op("Div", 1.0, op("Max", amount, LEAST))
            if taps.size is not None:
                inverse = op("Mul", inverse, bipartite.counted_once(op, taps, site))
            own = _root(op, op("Div", inverse, op("ReduceMax", inverse, axes=[1], keepdims=1)), tau)
            factor = own if factor is None else op("Mul", factor, own)
        return factor

    def _pairs(
        self,
        op: Ops,
        taps: Taps,
        site: Site,
        criteria: Value,
        others: Sequence[int],
        even: Sequence[int],
        odd: Sequence[int],
    ) -> Pairs:
        """Both rounds; even tokens fill the slots from len(others) on, odd ones those behind them."""
        first = site.removed // 2 if self.bidirectional else site.removed
        second, stay = site.removed - first, len(even) - first
        _, ranked = op("TopK", op("ReduceMax", criteria, axes=[2], keepdims=0), np.array([len(even)]), axis=1)
        rest = steps.cut(op, ranked, first, len(even))
        if site.protect and stay:
            rest = bipartite.ascending(op, rest, stay)
        numbered = steps.numbered(op, taps.tokens, len(odd))
        slots, odd_rest = op("Add", numbered, len(others) + stay), numbered
        source, goes = list[Value](), list[Value]()
        if second:
            left = steps.gather(op, criteria, rest)
            there, real = scores.present(op, taps), None
            if there is not None:
                real = op("Greater", op("Gather", there, np.array(odd), axis=1), 0.0)
                raised = op("And", op("Unsqueeze", real, np.array([1])), op("Greater", left, RAISED))
                left = op("Where", raised, steps.LOWEST, left)
            best_left = op("ReduceMax", left, axes=[1], keepdims=0)
            if real is not None:
                best_left = op("Where", real, best_left, -steps.LOWEST)
            _, odd_ranked = op("TopK", best_left, np.array([len(odd)]), axis=1)
            leaving = steps.cut(op, odd_ranked, 0, second)
            odd_rest = steps.cut(op, odd_ranked, second, len(odd))
            partner = op("GatherElements", op("ArgMax", left, axis=1, keepdims=0), leaving, axis=1)
            joined = op("Add", partner, len(others))
            kept = steps.cut(op, slots, 0, len(odd) - second)
            target = bipartite.joined(op, [joined, kept][: 1 + (len(odd) > second)])
            slots = op("ScatterElements", odd_ranked, odd_ranked, target, axis=1)
            source.append(_listed(op, odd, leaving))
            goes.append(joined)
        if first:
            leaving = steps.cut(op, ranked, 0, first)
            best = op("ArgMax", steps.gather(op, criteria, leaving), axis=2, keepdims=0)
            source.append(_listed(op, even, leaving))
            goes.append(op("GatherElements", slots, best, axis=1))
        keep = []
        if others:
            keep.append(
                op(
                    "Expand",
                    op.constant(np.array([others])),
                    steps.batch_shape(op, taps.tokens, len(others)),
                )
            )
        if stay:
            keep.append(_listed(op, even, rest))
        if len(odd) > second:
            keep.append(_listed(op, odd, odd_rest))
        return Pairs(bipartite.joined(op, keep), bipartite.joined(op, source), bipartite.joined(op, goes))

    def _weight(self, op: Ops, taps: Taps, site: Site, received: Value | None) -> Value:
        """What a token weighs among those it is pooled with: [B,N,1]; 0 for padding."""
        if self.pooling in ("mean", "max"):
            return bipartite.counted_once(op, taps, site)
        size = steps.sizes(op, taps, site)
        return op("Mul", size, received) if self.pooling == "attention" else size

    def _pooled(self, op: Ops, values: Value, weight: Value, pairs: Pairs) -> Value:
        """One row [B,K,X] of `values` [B,N,X] for each kept token and all that join it."""
        if self.pooling == "max":
            return _largest(op, values, weight, pairs)
        return op("TokenCombine", values, weight, pairs.keep, pairs.source, pairs.slot)[0]

    def _attention(
        self, op: Ops, taps: Taps, site: Site, weight: Value, pairs: Pairs, assign: Value
    ) -> Value:
        """Attention [B,H,K,K] between merged tokens: key columns summed, query rows pooled as tokens are."""
        slots = np.arange(site.keep).reshape(1, 1, -1)
        member = op("Cast", op("Equal", op("Unsqueeze", assign, steps.LAST), slots), to=steps.FLOAT)
        summed = op("MatMul", taps.attention(), op("Unsqueeze", member, np.array([1])))
        rows = op("Transpose", summed, perm=[0, 2, 1, 3])
        flat = op("Reshape", rows, np.array([0, site.tokens, site.heads * site.keep]))
        pooled = self._pooled(op, flat, weight, pairs)
        split = op("Reshape", pooled, np.array([0, site.keep, site.heads, site.keep]))
        return op("Transpose", split, perm=[0, 2, 1, 3])


def _root(op: Ops, value: Value, tau: float) -> Value:
    return value if tau == 1 else op("Pow", value, 1 / tau)


def _outer(op: Ops, rows: Value, even: Sequence[int], odd: Sequence[int]) -> Value:
    """Products [B,S,T] of the rows at two lists of positions."""
    left, right = (op("Gather", rows, np.array(side), axis=1) for side in (even, odd))
    return op("MatMul", left, op("Transpose", right, perm=[0, 2, 1]))


def _scaled(
    op: Ops, pair: Value, left: Value, even: Sequence[int], right: Value, odd: Sequence[int]
) -> Value:
    """[B,S,T] times numbers [B,N,1] of the tokens on each side."""
    rows = op("Gather", left, np.array(even), axis=1)
    columns = op("Transpose", op("Gather", right, np.array(odd), axis=1), perm=[0, 2, 1])
    return op("Mul", op("Mul", pair, rows), columns)


def _listed(op: Ops, positions: Sequence[int], places: Value) -> Value:
    """The entries of a constant list at `places` [B,M]."""
    return op("Gather", op.constant(np.array(positions)), places, axis=0)


def _largest(op: Ops, values: Value, counts: Value, pairs: Pairs) -> Value:
    """Largest entry of each group, channel by channel; `counts` [B,N,1] is 0 where a row must not count."""
    wide = op("Cast", values, to=steps.FLOAT)
    valid = op("Where", op("Greater", counts, 0.0), wide, steps.LOWEST)
    kept, near = (steps.gather(op, data, pairs.keep) for data in (wide, valid))
    moved = op("Unsqueeze", steps.gather(op, valid, pairs.source), np.array([1]))
    rows = op("Where", op("Unsqueeze", bipartite.together(op, pairs), ROWS), moved, steps.LOWEST)
    grown = op("Max", steps.gather(op, near, pairs.slot), op("ReduceMax", rows, axes=[2], keepdims=0))
    known = op("Where", op("Greater", grown, steps.LOWEST), grown, steps.gather(op, kept, pairs.slot))
    place = op("Expand", op("Unsqueeze", pairs.slot, steps.LAST), op("Shape", known))
    return op("CastLike", op("ScatterElements", kept, place, known, axis=1), values)
