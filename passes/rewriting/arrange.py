"""What a method sees of the tokens at a site: protected ones in front, and those of which not all may learn not at all.

Methods keep the first P tokens. Where learned tokens stand behind the patches, or the user protects others, the method reads its
taps with the protected tokens moved to the front, and what it says of positions is told in the model's own order again. Protected
tokens that others do not see in the model, as later words, pass beside the method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.methods.contract import Method, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import received_of_real
from tokenrt.passes.rewriting.stages import compose, constant, follow
from tokenrt.passes.rewriting.taps.wrapped import Wrapped

Places = np.ndarray[Any, Any]


def reduce(op: GraphOps, method: Method, taps: Taps, site: Site, order: Places, unseen: Places) -> Reduction:
    """What the method makes of tokens that stand in another order.

    order [N]: the position of each, protected ones first. unseen [H]: the places in `order` of protected tokens that it may
    not read.
    """
    if len(unseen):
        return _beside(op, method, taps, site, order, unseen)
    if (order == np.arange(len(order))).all():
        return method.reduce(op, taps, site)
    found = method.reduce(op, Arranged(op, taps, order), site)
    back = np.argsort(order)
    affinity = found.affinity if found.affinity is None else op("Gather", found.affinity, back, axis=1)
    return replace(
        found,
        position=compose(op, order[None], constant(found.position)),
        assign=compose(op, constant(found.assign), back[None]),
        affinity=affinity,
    )


def select(
    op: GraphOps, method: Method, taps: Taps, site: Site, order: Places, unseen: Places, *, front: int
) -> Reduction:
    """What is left where tokens keep their order: the protected ones in front, what the method chooses, those behind.

    The method sees the tokens that may leave, which stand together behind the first `front`. Raises: UnsupportedError where what
    it gives is not some of these tokens as they are.
    """
    behind = site.protect - front
    some = np.arange(front, site.tokens - behind)
    smaller = replace(
        site,
        tokens=len(some),
        keep=site.keep - site.protect,
        protect=0,
        initial=None if site.initial is None else site.initial - site.protect,
        class_token=False,
    )
    found = method.reduce(op, Shown(op, taps, some), smaller)
    if not selects(found, taps.tokens):
        raise UnsupportedError(
            f"{method.name} gives tokens that are not some of those that come to it, or not as they are; where a mask tells "
            "tokens apart, as a causal one, a token that holds others would tell earlier ones of them: use a method, or options "
            "of it, that only select, e.g. fastv or divprune"
        )
    chosen = constant(found.position)
    if isinstance(chosen, np.ndarray):
        index = np.concatenate(
            [np.arange(front), np.sort(chosen[0]) + front, np.arange(site.tokens - behind, site.tokens)]
        )
        return steps.constantly_pruned(op, taps, site, index)
    if not method.ascending:
        chosen = bipartite.ascending(op, chosen, smaller.keep)
    parts = [op("Add", chosen, np.array(front)) if front else chosen]
    ends = np.arange(front), np.arange(site.tokens - behind, site.tokens)
    before, after = (
        [op("Expand", op.constant(end[None]), steps.batch_shape(op, taps.tokens, len(end)))]
        if len(end)
        else []
        for end in ends
    )
    return steps.pruned(op, taps, site, bipartite.joined(op, [*before, *parts, *after]))


def selects(reduction: Reduction, rows: Value) -> bool:
    """Whether what stays is some of these rows as they are, and not one of it a mixture."""
    taken = reduction.tokens.producer()
    source = (
        None if taken is None or taken.op_type not in ("Gather", "GatherND", "Slice") else taken.inputs[0]
    )
    turned = None if source is None else source.producer()
    return source is rows or (turned is not None and turned.op_type == "Gather" and turned.inputs[0] is rows)


def _beside(op: GraphOps, method: Method, taps: Taps, site: Site, order: Places, unseen: Places) -> Reduction:
    """As `reduce`, of the tokens but for the unseen ones, which are put back at their place among the protected ones."""
    if site.class_token and 0 in unseen:
        raise UnsupportedError(
            "the class token is not seen by all tokens in the model's masks, and the method would tell them of it"
        )
    hidden, some = order[unseen], np.delete(order, unseen)
    count, front = len(hidden), site.protect - len(unseen)
    smaller = replace(
        site,
        tokens=site.tokens - count,
        keep=site.keep - count,
        protect=front,
        initial=None if site.initial is None else site.initial - count,
    )
    found = method.reduce(op, Shown(op, taps, some), smaller)
    if found.affinity is not None:
        raise UnsupportedError(
            f"the method gives every token a part of all others, and masks keep {count} protected tokens from the others; "
            "use a method that assigns each token to one, as tome, or that selects, as topk"
        )
    # The outputs of the method and then the unseen tokens, brought into the order of the protected ones.
    places = np.full(site.protect, -1)
    places[unseen] = smaller.keep + np.arange(count)
    places[places < 0] = np.arange(front)
    joined = np.concatenate([places, np.arange(front, smaller.keep)])
    slots, size = np.argsort(joined), found.size
    if size is not None:
        size = _together(op, size, op("Gather", steps.sizes(op, taps, site), hidden, axis=1), joined)
    return replace(
        found,
        tokens=_together(op, found.tokens, op("Gather", taps.tokens, hidden, axis=1), joined),
        size=size,
        position=_indices(op, compose(op, some[None], constant(found.position)), hidden, taps.tokens, joined),
        assign=_indices(
            op,
            follow(op, slots[None, : smaller.keep], constant(found.assign), method.drops),
            slots[smaller.keep :],
            taps.tokens,
            np.argsort(np.concatenate([some, hidden])),
        ),
    )


def _together(op: GraphOps, value: Value, other: Value, places: Places) -> Value:
    return op("Gather", op("Concat", value, other, axis=1), places, axis=1)


def _indices(op: GraphOps, value: Value, other: Places, tokens: Value, places: Places) -> Value:
    """[B,N] of integers, and the same for all pictures behind them, in another order."""
    if isinstance(value, np.ndarray):
        return np.concatenate([value, np.broadcast_to(other, (len(value), len(other)))], axis=1)[:, places]
    everywhere = op("Expand", op.constant(other[None]), steps.batch_shape(op, tokens, len(other)))
    return _together(op, value, everywhere, places)


@dataclass(frozen=True)
class Arranged(Wrapped):
    """Taps of tokens in another order."""

    order: np.ndarray[Any, Any]

    def _along(self, value: Value, *axes: int) -> Value:
        for axis in axes:
            value = self.op("Gather", value, self.order, axis=axis)
        return value

    def _rows(self, value: Value) -> Value:
        return self._along(value, 1)

    def _heads(self, value: Value) -> Value:
        return self._along(value, 2)

    def _scores(self, value: Value) -> Value:
        return self._along(value, 1)

    def _matrix(self, value: Value) -> Value:
        return self._along(value, 2, 3)

    @property
    def tokens(self) -> Value:
        return self._rows(self.taps.tokens)

    @property
    def size(self) -> Value | None:
        return None if self.taps.size is None else self._rows(self.taps.size)

    def importance(self) -> Value:
        return self._scores(self.taps.importance())

    def projected(self, tokens: Value) -> Value:
        return self.taps.projected(tokens)


@dataclass(frozen=True)
class Shown(Arranged):
    """Taps of some of the tokens; no number in them depends on others."""

    def received_attention(self) -> Value:
        if self.size is None:
            return self.op("ReduceMean", self.attention(), axes=[1, 2], keepdims=0)
        return received_of_real(self.op, self.attention(), self.size)
