"""What travels with the tokens behind each reduction: counts, sizes, positions, and where every original token went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.methods.contract import Method, Reduction, Value
from tokenrt.passes.ops.graph_backend import GraphOps

INT64 = int(ir.DataType.INT64)


@dataclass(frozen=True)
class Stage:
    """The state after some number of reductions.

    position [B,K]: the original token whose place each token takes. source_map [B,N0]: the current token each
    original one lives in, -1 where it was dropped. assign and before belong to the last reduction: where its
    N inputs went, and those inputs; affinity replaces assign where positions are restored by more than a copy.
    taken [B,K]: the token of the stage before that each one stands for. parent: the stage before it. method: what made
    it. state: what that hands on to its next site. None: nothing has happened yet (every token in its own place).
    representative [B,1,C]: the last output token as it was made, where its changes go to the dropped tokens as well. ordered:
    tokens keep their order, and of several that were merged the last one's place, as under a causal mask.
    """

    count: int
    size: ir.Value | None = None
    position: Value | None = None
    source_map: Value | None = None
    taken: Value | None = None
    assign: Value | None = None
    before: ir.Value | None = None
    affinity: ir.Value | None = None
    representative: ir.Value | None = None
    parent: Stage | None = None
    method: Method | None = None
    state: Mapping[str, ir.Value] = field(default_factory=dict)
    ordered: bool = False
    cache: dict[Any, ir.Value] = field(default_factory=dict)

    @property
    def drops(self) -> bool:
        """Whether the last reduction put some tokens into no other."""
        return self.method is not None and self.method.drops

    @property
    def dropped(self) -> bool:
        """Whether tokens are gone, at this reduction or before."""
        return any(step.drops for step in self.chain())

    @property
    def merged(self) -> bool:
        """Whether tokens are averages that stand in the places of all their members, of this reduction or before."""
        return not self.ordered and any(
            step.method is not None and step.method.merges for step in self.chain()
        )

    @property
    def empties(self) -> bool:
        """Whether some tokens may be made of none, of this reduction or before."""
        return any(step.method is not None and step.method.empties for step in self.chain())

    def chain(self) -> Iterator[Stage]:
        """The stage and those before it, without the first, where no token had left."""
        stage = self
        while stage.parent is not None:
            yield stage
            stage = stage.parent

    def after(
        self, op: GraphOps, reduction: Reduction, tokens: ir.Value, count: int, method: Method
    ) -> Stage:
        """The next stage behind one more reduction of `tokens`."""
        return replace(
            self,
            count=count,
            size=reduction.size,
            position=compose(op, self.position, constant(reduction.position)),
            source_map=follow(op, constant(reduction.assign), self.source_map, method.drops or self.dropped),
            taken=constant(reduction.position),
            assign=reduction.assign,
            before=tokens,
            affinity=reduction.affinity,
            representative=_last(op, reduction.tokens, count) if reduction.represented else None,
            parent=self,
            method=method,
            state=reduction.state,
            cache={},
        )


def since(op: GraphOps, stage: Stage, earlier: Stage) -> Value:
    """[B,K] int64: the token of an earlier stage that each one of `stage` stands for."""
    index, parent = stage.taken, stage.parent
    while parent is not None and parent is not earlier:
        index, parent = compose(op, parent.taken, index), parent.parent
    return index


Carry = Callable[[Stage], ir.Value | None]
"""The N tokens in front of a reduction, carried to where all are to be there again; None: they are there what they were."""


def full(op: GraphOps, tokens: ir.Value, stage: Stage, carry: Carry = lambda step: None) -> ir.Value:
    """[B,N0,C] from the [B,K,C] of a stage: merged tokens are copied, or spread by affinity; dropped ones are carried here."""
    if not stage.dropped and all(step.affinity is None for step in stage.chain()):
        return tokens if stage.source_map is None else _spread(op, tokens, stage.source_map)
    for step in stage.chain():
        assert step.parent is not None
        if step.affinity is not None:
            single = op("Cast", tokens, to=int(ir.DataType.FLOAT))
            tokens = op("CastLike", op("MatMul", step.affinity, single), tokens)
            continue
        source = constant(step.assign)
        if step.drops:
            cached = np.arange(step.count, step.count + step.parent.count, dtype=np.int64)[None]
            if isinstance(source, np.ndarray):
                source = np.where(source < 0, cached, source)
            else:
                source = op("Where", op("Less", source, 0), cached, source)
            tokens = op("Concat", tokens, _back(op, step, tokens, carry(step)), axis=1)
        tokens = _spread(op, tokens, source)
    return tokens


def _back(op: GraphOps, step: Stage, tokens: ir.Value, carried: ir.Value | None) -> ir.Value | None:
    """The N tokens of before a reduction, as those of them that were dropped come back.

    Raises: UnsupportedError where what a representative gains is in another space than what it stands for.
    """
    if carried is not None and step.representative is not None:
        raise UnsupportedError(
            "dropped tokens come back with what their representative has gained, but norms or products lie between them and "
            "where they come back; use a variant or a method without a representative"
        )
    if step.representative is None:
        return step.before if carried is None else carried
    change = op("Sub", _last(op, tokens, step.count), step.representative)
    changed: ir.Value = op("Add", step.before, change)
    return changed


def _last(op: GraphOps, tokens: ir.Value, count: int) -> ir.Value:
    """The last of `count` tokens: [B,1,C]."""
    last: ir.Value = op("Slice", tokens, [count - 1], [count], [1])
    return last


def _spread(op: GraphOps, tokens: ir.Value, source_map: Value) -> ir.Value:
    """Copy tokens to the positions that map to them."""
    if isinstance(source_map, np.ndarray):
        restored: ir.Value = op("Gather", tokens, source_map[0], axis=1)
    else:
        restored = op("TokenRestore", tokens, source_map)
    return restored


def constant(value: Value) -> Value:
    """Constants as arrays, so that chains of them stay constants."""
    return (
        value.const_value.numpy() if isinstance(value, ir.Value) and value.const_value is not None else value
    )


def compose(op: GraphOps, outer: Value | None, inner: Value) -> Value:
    """outer[inner] along axis 1; constants have batch 1 and stay constants."""
    if outer is None:
        return inner
    if isinstance(outer, np.ndarray) and isinstance(inner, np.ndarray):
        return np.take(outer, inner[0], axis=1)
    if isinstance(inner, np.ndarray):
        return op("Gather", outer, inner[0], axis=1)
    if isinstance(outer, np.ndarray):
        return op("Gather", outer[0], inner, axis=0)
    return op("GatherElements", outer, inner, axis=1)


def follow(op: GraphOps, assign: Value, source_map: Value | None, drops: bool) -> Value:
    """Where every original token is after one more reduction; dropped ones stay dropped."""
    if source_map is None:
        return assign
    if isinstance(assign, np.ndarray) and isinstance(source_map, np.ndarray):
        return np.where(source_map < 0, -1, np.take(assign, np.maximum(source_map[0], 0), axis=1))
    if not drops:
        return compose(op, assign, source_map)
    moved = compose(op, assign, op("Max", source_map, 0))
    return op("Where", op("Less", source_map, 0), -1, moved)
