"""Whole units for a method: U tokens that follow each other are to it one token, U times as wide.

Its vectors are those of the unit's tokens side by side, so that member j of a unit is compared and merged with member j of
another. The attention that a unit gives is the mean over its tokens, and what it receives their sum, as a softmax over units
would give; so units rank by attention as by the mean of their tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.marks import Mark
from tokenrt.passes.methods.contract import Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.stages import Stage, compose, constant, follow
from tokenrt.passes.rewriting.taps.wrapped import Wrapped

Reduce = Callable[[Taps, Site, "Places", "Places"], Reduction]
Places = np.ndarray[Any, Any]


def reduce(
    op: GraphOps, unit: int, taps: Taps, site: Site, order: Places, unseen: Places, run: Reduce
) -> Reduction:
    """What `run` makes of the units of these tokens, as tokens again.

    order [N], unseen [H]: as `arrange.reduce` takes them, here of whole units. Raises: UnsupportedError.
    """
    if unit == 1:
        return run(taps, site, order, unseen)
    if taps.padded:
        raise UnsupportedError(
            f"tokens leave in whole merge units of {unit}, and the model's mask may hide some of a unit as padding: export it "
            "without the mask, or drop --short"
        )
    if len(unseen) % unit or (unseen[::unit] % unit).any():
        raise UnsupportedError(
            f"tokens leave in whole merge units of {unit}, and a mask hides a part of a protected unit from other tokens: "
            "protect other tokens, or drop --short"
        )
    whole = replace(
        site,
        tokens=site.tokens // unit,
        keep=site.keep // unit,
        protect=site.protect // unit,
        width=site.width * unit,
        initial=None if site.initial is None else site.initial // unit,
        channels=None if site.channels is None else site.channels * unit,
    )
    found = run(Units(op, taps, unit, whole.tokens), whole, order[::unit] // unit, unseen[::unit] // unit)
    if found.represented:
        raise UnsupportedError(
            f"tokens leave in whole merge units of {unit}, and the method lets one token stand for all that left: use a method "
            "without a representative, e.g. topk"
        )
    return replace(
        found,
        tokens=op("Reshape", found.tokens, [0, site.keep, -1]),
        size=None if found.size is None else _each(op, found.size, unit, site.keep),
        position=members(op, constant(found.position), unit, site.keep),
        assign=members(op, constant(found.assign), unit, site.tokens),
        affinity=None if found.affinity is None else _between(op, found.affinity, unit, site),
    )


def members(op: GraphOps, index: Value, unit: int, count: int) -> Value:
    """[B,N] numbers of tokens from [B,N/U] numbers of units, -1 where a unit has none."""
    inside = np.arange(unit)
    if isinstance(index, np.ndarray):
        return np.maximum(index[..., None] * unit + inside, steps.DROPPED).reshape(len(index), count)
    tokens = op("Add", op("Mul", op("Unsqueeze", index, [2]), np.array(unit)), inside[None, None])
    return op("Reshape", op("Max", tokens, np.array(steps.DROPPED)), [0, count])


def of_units(op: GraphOps, index: Value, unit: int) -> Value:
    """[B,N/U] numbers of units from [B,N] numbers of tokens that are whole units, -1 where there are none."""
    if isinstance(index, np.ndarray):
        return index[:, ::unit] // unit
    first = op("Slice", index, [0], [2**31 - 1], [1], [unit])
    # ONNX divides towards zero: -1 has to be lifted above it for the while.
    return op("Sub", op("Div", op("Add", first, np.array(unit)), np.array(unit)), np.array(1))


def places(op: GraphOps, stage: Stage, mark: Mark) -> Value:
    """[B,M] int64: which entries of the whole axis those that are left are, in the order in which they stand there."""
    key = ("places", mark.unit, mark.offset, mark.order)
    if key not in stage.cache:
        found = _behind(op, of_units(op, stage.position, mark.unit), mark.offset)
        if mark.order is not None:
            found = compose(op, np.argsort(mark.order)[None], found)
            found = _ascending(op, found, mark.entries(stage.count))
        stage.cache[key] = found
    return stage.cache[key]


def lives(op: GraphOps, stage: Stage, mark: Mark) -> Value:
    """[B,M0] int64: for each entry of the whole axis the one it is part of among those that are left, -1 where it was dropped."""
    goes = _behind(op, of_units(op, stage.source_map, mark.unit), mark.offset)
    if mark.order is None:
        return goes
    came = turned(op, stage, mark)
    if isinstance(came, np.ndarray):
        back: Value = np.argsort(came, axis=1)
    else:
        count = mark.entries(stage.count)
        back = op("ScatterElements", came, came, steps.numbered(op, came, count), axis=1)
    return follow(op, back, compose(op, goes, np.array(mark.order)[None]), True)


def turned(op: GraphOps, stage: Stage, mark: Mark) -> Value:
    """[B,M] int64: which of the units that are left comes at each place of an axis that has an order of its own."""
    goes = of_units(op, stage.source_map, mark.unit)
    return compose(op, goes, compose(op, np.array(mark.order)[None], places(op, stage, mark)))


def _behind(op: GraphOps, index: Value, offset: int) -> Value:
    """[B,N-P] numbers [B,N] of tokens counted behind the first P, which all have a place; -1 stays."""
    if not offset:
        return index
    if isinstance(index, np.ndarray):
        return np.maximum(index[:, offset:] - offset, steps.DROPPED)
    lowered = op("Sub", op("Slice", index, [offset], [2**31 - 1], [1]), np.array(offset))
    return op("Max", lowered, np.array(steps.DROPPED))


def _ascending(op: GraphOps, index: Value, count: int) -> Value:
    return np.sort(index, axis=1) if isinstance(index, np.ndarray) else bipartite.ascending(op, index, count)


def _each(op: GraphOps, size: Value, unit: int, count: int) -> Value:
    """[B,K,1] sizes of tokens from [B,K/U,1] of units, whose tokens have the same."""
    return op("Reshape", op("Concat", *[size] * unit, axis=2), [0, count, 1])


def _between(op: GraphOps, affinity: Value, unit: int, site: Site) -> Value:
    """[B,N,K] from [B,N/U,K/U]: a token takes of the tokens at its own place in their units."""
    same = np.eye(unit, dtype=np.float32).reshape(1, 1, unit, 1, unit)
    spread = op("Mul", op("Unsqueeze", affinity, [2, 4]), same)
    return op("Reshape", spread, [0, site.tokens, site.keep])


@dataclass(frozen=True)
class Units(Wrapped):
    """The taps of tokens as those of their units; count: how many units there are."""

    unit: int
    count: int

    def _rows(self, value: Value) -> Value:
        """[B,N,C] as [B,N/U,U*C]."""
        return self.op("Reshape", value, [0, self.count, -1])

    def _heads(self, value: Value) -> Value:
        """[B,H,N,D] as [B,H,N/U,U*D]."""
        return self.op("Reshape", value, [0, 0, self.count, -1])

    def _scores(self, value: Value) -> Value:
        """[B,N] as [B,N/U]: what the tokens of a unit receive together."""
        return self.op("ReduceSum", self._members(value), [2], keepdims=0)

    def _matrix(self, value: Value) -> Value:
        """[B,H,N,N] as [B,H,N/U,N/U]."""
        apart = self.op("Reshape", value, [0, 0, self.count, self.unit, self.count, self.unit])
        given = self.op("ReduceMean", apart, axes=[3], keepdims=0)
        return self.op("ReduceSum", given, [4], keepdims=0)

    def _columns(self, value: Value) -> Value:
        """[B,H,T,N] as [B,H,T,N/U]."""
        members = self.op("Reshape", value, [0, 0, -1, self.count, self.unit])
        return self.op("ReduceSum", members, [4], keepdims=0)

    def _members(self, value: Value) -> Value:
        """[B,N] as [B,N/U,U]."""
        return self.op("Reshape", value, [0, self.count, self.unit])

    @cached_property
    def tokens(self) -> Value:
        """One value, so that what a method selects can be told from what it mixes."""
        return self._rows(self.taps.tokens)

    @property
    def size(self) -> Value | None:
        """The size of a unit's first token, which is that of all."""
        size = self.taps.size
        return None if size is None else self.op("Slice", size, [0], [2**31 - 1], [1], [self.unit])

    def importance(self) -> Value:
        """[B,N/U]: the mean of a unit's tokens."""
        return self.op("ReduceMean", self._members(self.taps.importance()), axes=[2], keepdims=0)

    def projected(self, tokens: Value) -> Value:
        return self._rows(self.taps.projected(self.op("Reshape", tokens, [0, self.count * self.unit, -1])))
