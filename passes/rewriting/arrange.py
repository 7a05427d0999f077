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
from tokenrt.passes.methods.parts import bipartite, clusters, steps
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import received_of_real
from tokenrt.passes.rewriting.stages import INT64, compose, constant, follow
from tokenrt.passes.rewriting.taps.wrapped import Moved

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
    """What is left where tokens keep their order: the protected ones in front, what the method makes, those behind.

    The method sees the tokens that may leave, which stand together behind the first `front`. Raises: UnsupportedError where what
    it gives is neither some of these tokens as they are nor made of tokens that it tells.
    """
    behind = site.protect - front
    some, end = np.arange(front, site.tokens - behind), np.arange(site.tokens - behind, site.tokens)
    smaller = replace(
        site,
        tokens=len(some),
        keep=site.keep - site.protect,
        protect=0,
        initial=None if site.initial is None else site.initial - site.protect,
        class_token=False,
    )
    if not smaller.keep:
        return steps.constantly_pruned(op, taps, site, np.concatenate([np.arange(front), end]))
    found = method.reduce(op, Shown(op, taps, some), smaller)
    if not selects(found, taps.tokens):
        if not method.joins or not method.keeps_order:
            raise UnsupportedError(
                f"{method.name} gives tokens that are not some of those that come to it, or not as they are; where a mask "
                "tells tokens apart, as a causal one, a token that holds others would tell earlier ones of them: use a method, "
                "or options of it, that only select, e.g. fastv or divprune"
            )
        placed = last_members(op, found, smaller, empties=method.empties)
        sizes = steps.sizes(op, taps, site) if method.empties else taps.size
        return _between(op, taps, site, placed, front, sizes)
    chosen = constant(found.position)
    if isinstance(chosen, np.ndarray):
        made = steps.constantly_pruned(
            op, taps, site, np.concatenate([np.arange(front), np.sort(chosen[0]) + front, end])
        )
        return replace(made, state=found.state)
    if not method.ascending:
        chosen = bipartite.ascending(op, chosen, smaller.keep)
    parts = [op("Add", chosen, np.array(front)) if front else chosen]
    before, after = ([_everywhere(op, taps, each)] if len(each) else [] for each in (np.arange(front), end))
    made = steps.pruned(op, taps, site, bipartite.joined(op, [*before, *parts, *after]))
    return replace(made, state=found.state)


def last_members(op: GraphOps, found: Reduction, site: Site, *, empties: bool = False) -> Reduction:
    """The same outputs, each at the place of the last token it is made of, in that order: none in front learns of one behind.

    empties: outputs of no token, if there are such, stand behind all others, at the last place.
    """
    member = clusters.members(op, found.assign, site.keep)
    last = op(
        "ReduceMax", op("Where", member, np.arange(site.tokens, dtype=np.float32), -1.0), axes=[2], keepdims=0
    )
    if empties:
        last = op("Where", op("Less", last, 0.0), float(site.tokens), last)
    position, order = op("TopK", last, np.array([site.keep]), axis=1, largest=0)
    if empties:
        position = op("Min", position, float(site.tokens - 1))
    slots = steps.numbered(op, found.tokens, site.keep)
    rank = op("ScatterElements", slots, order, slots, axis=1)
    return replace(
        found,
        tokens=steps.gather(op, found.tokens, order),
        size=None if found.size is None else steps.gather(op, found.size, order),
        position=op("Cast", position, to=INT64),
        assign=follow(op, rank, found.assign, True),
    )


def _between(
    op: GraphOps, taps: Taps, site: Site, found: Reduction, front: int, size: Value | None
) -> Reduction:
    """What was made of the tokens that may leave, between those in front and those behind; every token counts as one, or none.

    size: [B,N,1] of all tokens of the site, None where all are one and no output is made of none.
    """
    behind = site.protect - front
    ends = np.arange(front), np.arange(site.tokens - behind, site.tokens)

    def joined(own: Value, *others: Value) -> Value:
        parts = [other for other, end in zip(others, ends, strict=True) if len(end)]
        return bipartite.joined(op, [*parts[: bool(front)], own, *parts[bool(front) :]])

    def around(own: Value, value: Value) -> Value:
        return joined(own, *(op("Gather", value, end, axis=1) for end in ends))

    moved = op("Where", op("Less", found.assign, 0), steps.DROPPED, op("Add", found.assign, np.array(front)))
    if size is not None:
        own = steps.gather(
            op, op("Gather", size, np.arange(front, site.tokens - behind), axis=1), found.position
        )
        size = around(own if found.size is None else op("Min", found.size, 1.0), size)
    return replace(
        found,
        tokens=around(found.tokens, taps.tokens),
        size=size,
        position=joined(
            op("Add", found.position, np.array(front)), *(_everywhere(op, taps, end) for end in ends)
        ),
        assign=joined(
            moved,
            *(_everywhere(op, taps, end) for end in (ends[0], np.arange(site.keep - behind, site.keep))),
        ),
    )


def _everywhere(op: GraphOps, taps: Taps, places: Places) -> Value:
    """[B,M] int64: the same for all pictures."""
    return op("Expand", op.constant(places[None]), steps.batch_shape(op, taps.tokens, len(places)))


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
class Arranged(Moved):
    """Taps of tokens in another order."""

    order: np.ndarray[Any, Any]

    def _along(self, value: Value, axis: int, rank: int) -> Value:
        return self.op("Gather", value, self.order, axis=axis)


@dataclass(frozen=True)
class Shown(Arranged):
    """Taps of some of the tokens; no number in them depends on others."""

    def received_attention(self) -> Value:
        if self.size is None:
            return self.op("ReduceMean", self.attention(), axes=[1, 2], keepdims=0)
        return received_of_real(self.op, self.attention(), self.size)
