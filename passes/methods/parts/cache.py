"""What methods share that choose entries of a cache: the contract, scores by head, the best entries beside the latest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Entries, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps
from tokenrt.passes.methods.parts.scores import INT64

OWN, COMMON = "own", "common"
SCORE = "score"
DROP, MASK = "drop", "mask"
FORMS = (DROP, MASK)
"""Entries that leave are gone, or masked, as some releases do, whose window of the latest counts the token to come."""


Rows = Sequence[int] | None
"""Some of the Q tokens that ask, ascending; None for all."""


class CacheTaps(Protocol):
    """What a method may read of one layer's cache; float32. Padding stands in front of all other entries."""

    @property
    def state(self) -> Mapping[str, Value]:
        """What the call of the model before handed on, by name; empty where there was none."""

    def keys(self) -> Value:
        """[B,H,N,D]."""

    def values(self) -> Value:
        """[B,H,N,D]."""

    def queries(self) -> Value:
        """[B,A,Q,D] of the last Q of N tokens."""

    def logits(self, rows: Rows = None) -> Value:
        """[B,A,R,N] scaled products of R of the queries with the keys, under the model's mask."""

    def attention(self, rows: Rows = None) -> Value:
        """[B,A,R,N] their softmax."""

    def noise(self) -> Value:
        """[B,A,Q,N] noise for the logits, an input of the model."""

    def temperature(self) -> Value:
        """[B,1] what the logits are divided by in this call, an input of the model."""

    def hidden(self) -> Value:
        """[B,N,C] what queries, keys and values are made of."""

    def real(self) -> Value | None:
        """[B,N] truth: which entries are no padding; None where all are."""

    def unrotated(self) -> CacheTaps:
        """The same with queries and keys as they are before rotary embedding."""

    def predicted(self, width: int) -> CacheTaps:
        """The same with queries [B,A,Q,W] and keys [B,H,N,W] that a predictor beside the model gives, inputs of the model."""


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that chooses K of the N entries of one layer's cache, keys and values [B,H,N,D].

    thins: the cache then holds these alone; else the model only tells which they are.
    Option heads: own, each head of keys keeps entries of its own, or common, all keep the same, those best for their sum.
    """

    home: ClassVar[Home] = "cache"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    thins: ClassVar[bool] = True

    heads: str = OWN

    def __post_init__(self) -> None:
        steps.choice(self.name, "heads", self.heads, (OWN, COMMON))

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        """Choose K of N entries; the caller has checked fewest(N, 0) <= K < N."""
        raise NotImplementedError

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        raise MethodError(f"method {self.name!r} chooses entries of a cache, and reduces no tokens")

    def by_head(self, op: Ops, score: Value, site: Site) -> Value:
        """Add up scores [B,A,N] of heads of queries for the heads of keys they share, [B,H,N], or for all, [B,1,N]."""
        if self.heads == COMMON or site.shared == 1:
            return self.by_key(op, score)
        split = op("Reshape", score, np.array([0, site.heads, site.shared, site.tokens]))
        return op("ReduceSum", split, np.array([2]), keepdims=0)

    def by_key(self, op: Ops, score: Value) -> Value:
        """Scores [B,H,N] of heads of keys, as they are or added up, [B,1,N]."""
        return op("ReduceSum", score, np.array([1]), keepdims=1) if self.heads == COMMON else score

    def lists(self, site: Site) -> int:
        """How many lists of entries there are: H, or 1."""
        return 1 if self.heads == COMMON else site.heads


def seen(site: Site) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of N entries the last Q tokens see: [Q,N]."""
    asks = np.arange(site.tokens - site.asking, site.tokens)
    return np.asarray(np.arange(site.tokens)[None] <= asks[:, None])


def within(op: Ops, taps: CacheTaps, site: Site, start: int, end: int) -> Value:
    """[B,1,N] or [1,1,N] truth: entries start to end - 1, counted without padding."""
    place, real = np.arange(site.tokens), taps.real()
    if real is None:
        return op.constant(((place >= start) & (place < end))[None, None])
    rank = op("Sub", op("CumSum", op("Cast", real, to=INT64), np.array(1)), 1)
    inside = op("And", op("Not", op("Less", rank, start)), op("Less", rank, end))
    return op("Unsqueeze", inside, np.array([1]))


def received(op: Ops, taps: CacheTaps, site: Site, attention: Value, rows: Rows = None) -> Value:
    """Attention [B,A,R,N] added up over those who ask, these rows of the Q, padding left out: [B,A,N]."""
    real = taps.real()
    if real is not None:
        first = site.tokens - site.asking
        which = np.arange(site.asking) if rows is None else np.array([*rows])
        asks = op("Gather", real, first + which, axis=1)
        attention = op("Where", op("Unsqueeze", asks, np.array([1, 3])), attention, 0.0)
    return op("ReduceSum", attention, np.array([2]), keepdims=0)


def accumulated(op: Ops, taps: CacheTaps, site: Site, score: Value) -> Value:
    """The score [B,L,N] plus what earlier calls of the model gave to the entries that are not of this one, [B,L,N-Q]."""
    before = taps.state.get(SCORE)
    if before is None:
        return score
    fresh = op("Mul", steps.cut(op, score, site.tokens - site.asking, site.tokens, 2), 0.0)
    return op("Add", score, op("Concat", before, fresh, axis=2))


def best(
    op: Ops,
    taps: CacheTaps,
    score: Value,
    lists: int,
    count: int,
    tokens: int,
    always: Value | None = None,
) -> Value:
    """The `count` of the first `tokens` entries of the best scores, ascending: score [B,L,tokens] -> [B,L,count].

    always: [B,1,tokens] truth, which stay in any case. Padding stays only where all others do.
    """
    rated, real = scores.numbers(op, score), taps.real()
    if always is not None:
        rated = op("Where", always, scores.ALWAYS, rated)
    if real is not None:
        here = op("Unsqueeze", steps.cut(op, real, 0, tokens), np.array([1]))
        rated = op("Where", here, rated, steps.LOWEST)
    flat = op("Reshape", rated, np.array([-1, tokens]))
    index = op("TokenSelect", flat, keep=count, protect=0, order=steps.ORDERS[steps.BY_POSITION])
    return op("Reshape", index, np.array([-1, lists, count]))


def beside(op: Ops, taps: CacheTaps, score: Value, lists: int, site: Site, free: int, latest: int) -> Value:
    """The best of the first `free` entries and the `latest` last ones, K in all: score [B,L,N] -> [B,L,K], ascending."""
    heavy = best(op, taps, steps.cut(op, score, 0, free, 2), lists, site.keep - latest, free)
    if not latest:
        return heavy
    last = np.arange(site.tokens - latest, site.tokens)[None, None]
    shape = op(
        "Concat", op("Slice", op("Shape", heavy), np.array([0]), np.array([2])), np.array([latest]), axis=0
    )
    return op("Concat", heavy, op("Expand", op.constant(last), shape), axis=2)


def heavy(
    op: Ops, taps: CacheTaps, site: Site, score: Value, lists: int, latest: int, *, masked: bool
) -> Entries:
    """The heaviest entries beside the `latest` ones, of scores [B,L,N] that add up from call to call.

    masked: the window holds the token to come and one entry less, and the entry before it is not among the heavy ones.
    """
    total = accumulated(op, taps, site, score)
    window = max(latest - 1, 0) if masked else latest
    index = beside(op, taps, total, lists, site, site.tokens - latest, window)
    return Entries(index, {SCORE: kept_state(op, total, index)})


def kept_state(op: Ops, score: Value, index: Value) -> Value:
    """The scores of the entries that stay."""
    return op("GatherElements", score, index, axis=2)


def entries(op: Ops, data: Value, index: Value) -> Value:
    """Take entries of data [B,H,N,D] at index [B,H,K] or [B,1,K] -> [B,H,K,D]."""
    heads = op("Slice", op("Shape", data), np.array([0]), np.array([2]))
    count = op("Slice", op("Shape", index), np.array([2]), np.array([3]))
    every = op("Expand", index, op("Concat", heads, count, axis=0))
    return op("GatherND", data, op("Unsqueeze", every, steps.LAST), batch_dims=2)
