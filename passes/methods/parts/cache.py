"""What methods share that choose entries of a cache: the contract, scores by head, the best entries beside the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Entries, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

OWN, COMMON = "own", "common"
PENDING = "no cache of a language model is rewritten by scores yet"
SCORE = "score"
DROP, MASK = "drop", "mask"
FORMS = (DROP, MASK)
"""Entries that leave are gone, or masked, as some releases do, whose window of the latest counts the token to come."""


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that chooses K of the N entries of one layer's cache, keys and values [B,H,N,D].

    Option heads: own, each head of keys keeps entries of its own, or common, all keep the same, those best for their sum.
    """

    home: ClassVar[Home] = "cache"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    pending: ClassVar[str] = PENDING

    heads: str = OWN

    def __post_init__(self) -> None:
        steps.choice(self.name, "heads", self.heads, (OWN, COMMON))

    def choose(self, op: Ops, taps: Taps, site: Site) -> Entries:
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


def received(op: Ops, attention: Value) -> Value:
    """Attention [B,A,Q,N] added up over those who ask: [B,A,N]."""
    return op("ReduceSum", attention, np.array([2]), keepdims=0)


def accumulated(op: Ops, taps: Taps, site: Site, score: Value) -> Value:
    """The score [B,L,N] plus what earlier calls of the model gave to the entries that are not of this one, [B,L,N-Q]."""
    before = taps.state.get(SCORE)
    if before is None:
        return score
    fresh = op("Mul", steps.cut(op, score, site.tokens - site.asking, site.tokens, 2), 0.0)
    return op("Add", score, op("Concat", before, fresh, axis=2))


def best(
    op: Ops, score: Value, lists: int, count: int, tokens: int, always: np.ndarray[Any, Any] | None = None
) -> Value:
    """The `count` of `tokens` entries of the best scores, ascending: score [B,L,N] -> [B,L,count]; always: [N], which stay."""
    rated = scores.numbers(op, score)
    if always is not None:
        rated = op("Where", always[None, None], scores.ALWAYS, rated)
    flat = op("Reshape", rated, np.array([-1, tokens]))
    index = op("TokenSelect", flat, keep=count, protect=0, order=steps.ORDERS[steps.BY_POSITION])
    return op("Reshape", index, np.array([-1, lists, count]))


def beside(op: Ops, score: Value, lists: int, site: Site, free: int, latest: int) -> Value:
    """The best of the first `free` entries and the `latest` last ones, K in all: score [B,L,N] -> [B,L,K], ascending."""
    heavy = best(op, steps.cut(op, score, 0, free, 2), lists, site.keep - latest, free)
    if not latest:
        return heavy
    last = np.arange(site.tokens - latest, site.tokens)[None, None]
    shape = op(
        "Concat", op("Slice", op("Shape", heavy), np.array([0]), np.array([2])), np.array([latest]), axis=0
    )
    return op("Concat", heavy, op("Expand", op.constant(last), shape), axis=2)


def heavy(op: Ops, taps: Taps, site: Site, score: Value, lists: int, latest: int, *, masked: bool) -> Entries:
    """The heaviest entries beside the `latest` ones, of scores [B,L,N] that add up from call to call.

    masked: the window holds the token to come and one entry less, and the entry before it is not among the heavy ones.
    """
    total = accumulated(op, taps, site, score)
    window = max(latest - 1, 0) if masked else latest
    index = beside(op, total, lists, site, site.tokens - latest, window)
    return Entries(index, {SCORE: kept_state(op, total, index)})


def kept_state(op: Ops, score: Value, index: Value) -> Value:
    """The scores of the entries that stay."""
    return op("GatherElements", score, index, axis=2)
