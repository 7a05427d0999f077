"""Masks, position biases and rotary tables follow the tokens; merged keys keep the mass of their members.

A mask or bias b_j added to the scores of keys j that were merged becomes log(mean_j exp(b_j)) over the
members, each counted by its size: with proportional attention the softmax then gives a merged key exactly the
weight its members had.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.attention import Core, hides
from tokenrt.passes.analysis.marks import Mark, ReduceAuxiliary, spans
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.shapes import BATCH, Shapes, describe
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import FLOAT, LOWEST
from tokenrt.passes.rewriting.stages import Stage

LEAST = 1e-30
END = 2**31 - 1


@dataclass(frozen=True)
class Auxiliaries:
    """Reduces auxiliary inputs to the length of a stage, once for each input and stage.

    validity [B,N,1]: 0 for padding, or None. rows: the pictures B. across: rows of each, whose tokens leave alike.
    """

    op: GraphOps
    shapes: Shapes
    validity: ir.Value | None
    rows: int
    across: int = 1

    def reduce(self, edit: ReduceAuxiliary, stage: Stage) -> ir.Value:
        """The input of `edit.node` at the stage's length, with the rank of the node's output."""
        value = edit.node.inputs[edit.index]
        assert value is not None
        turn = _turn(edit.node, edit.index)
        key = (value, edit.axes, edit.role, turn)
        if key in stage.cache:
            self._shown_share(edit.node, stage.cache.get(("shown", *key)))
            return stage.cache[key]
        rank = len(self.shapes.of(edit.node.outputs[0]))
        dims = (1,) * (rank - len(self.shapes.of(value))) + self.shapes.of(value)
        shift = rank - len(self.shapes.of(value))
        if edit.node.op_type in ("RotaryEmbedding", "Concat"):
            rank, dims, shift = len(dims) - shift, dims[shift:], 0
        places = [(axis + shift, mark) for axis, mark in edit.axes]
        pictures = self._pictures(edit.node, value, dims, [axis for axis, _ in places])
        result: ir.Value = value if not shift else self.op("Unsqueeze", value, list(range(shift)))
        result = self.op(turn, result) if turn else result
        for span in spans(mark.at(axis) for axis, mark in places):
            mark = span[0]
            axis, offset = mark.axis, mark.offset
            if mark.joint:
                result = self._beside(edit, result, mark, rank, dims, stage, pictures)
                dims = (*dims[:axis], mark.entries(stage.count), *dims[axis + 1 :])
                continue
            if len(span) > 1:
                dims = (*dims[:axis], prod(dims[axis : axis + 2]), *dims[axis + 2 :])
                result = self.op("Reshape", result, [-1 if size % BATCH == 0 else size for size in dims])
            keys = edit.role == "logits" and axis == rank - 1
            if keys and stage.merged:
                truth = value.dtype == ir.DataType.BOOL
                if truth and edit.node.op_type == "Where" and not depends_on_input(value):
                    stage.cache["shown", *key] = self._log(self._over_keys(result, rank, offset, stage))
                result = self._mean(result, rank, offset, stage, truth=truth)
            elif edit.role == "weight" and stage.merged:
                result = self._average(result, axis, rank - len(span) + 1, dims, offset, stage)
            else:
                result = self.take(result, axis, rank - len(span) + 1, dims, offset, stage, pictures)
            dims = (*dims[:axis], stage.count - offset, *dims[axis + 1 :])
            if pictures is not None:
                dims = (*dims[:pictures], self.rows, *dims[pictures + 1 :])
            if len(span) > 1:
                result = self.op("Unsqueeze", result, [axis + 1])
                dims = (*dims[: axis + 1], 1, *dims[axis + 1 :])
        stage.cache[key] = self.op(turn, result) if turn else result
        self._shown_share(edit.node, stage.cache.get(("shown", *key)))
        return stage.cache[key]

    def _pictures(
        self, node: ir.Node, value: ir.Value, dims: tuple[int, ...], tokens: list[int]
    ) -> int | None:
        """The axis of the pictures, which stands in front of the tokens or right behind them; None where there is one picture."""
        if self.rows == 1:
            return None
        if self.across > 1:
            raise UnsupportedError(
                f"{node.op_type} node {node.name!r}: input {value.name!r} {describe(self.shapes.of(value))} holds one entry per "
                f"token for {self.across} rows of each picture, and pictures have lost different tokens: fix the batch to 1"
            )
        axis = 1 if 0 in tokens else 0
        if axis < len(dims) and dims[axis] in (1, self.rows):
            return axis
        raise UnsupportedError(
            f"{node.op_type} node {node.name!r}: input {value.name!r} {describe(self.shapes.of(value))} holds one entry per "
            "token, and it cannot be told which of its axes counts the pictures; it cannot follow the tokens"
        )

    def take(
        self,
        value: ir.Value,
        axis: int,
        rank: int,
        dims: tuple[int, ...],
        offset: int,
        stage: Stage,
        pictures: int | None,
    ) -> ir.Value:
        """Entries of the positions the tokens stand at."""
        position = stage.position
        if isinstance(position, np.ndarray):
            return self.op("Gather", value, position[0, offset:] - offset, axis=axis)
        if offset:
            position = self.op("Sub", self.op("Slice", position, [offset], [2**31 - 1], [1]), offset)
        if pictures is None:
            return self.op("Gather", value, self.op("Squeeze", position, [0]), axis=axis)
        order = [pictures, axis, *(other for other in range(rank) if other not in (pictures, axis))]
        back = [order.index(other) for other in range(rank)]
        first = value if order == list(range(rank)) else self.op("Transpose", value, perm=order)
        if dims[pictures] == 1:
            taken = self.op("Gather", self.op("Squeeze", first, [0]), position, axis=0)
        else:
            taken = self.op("GatherND", first, self.op("Unsqueeze", position, [-1]), batch_dims=1)
        return taken if back == list(range(rank)) else self.op("Transpose", taken, perm=back)

    def _beside(
        self,
        edit: ReduceAuxiliary,
        value: ir.Value,
        mark: Mark,
        rank: int,
        dims: tuple[int, ...],
        stage: Stage,
        pictures: int | None,
    ) -> ir.Value:
        """Entries of the positions the tokens stand at, those of other streams left beside them. Raises: UnsupportedError."""
        if stage.merged and edit.role != "place":
            raise UnsupportedError(
                f"{edit.node.op_type} node {edit.node.name!r} has an entry for each token of this stream and others, and merged "
                "tokens need a mean of those of one stream: use a method that drops tokens, e.g. topk, or tomesd"
            )
        op, axis, first = self.op, mark.axis, mark.front
        own = op("Slice", value, [first], [dims[axis] - mark.behind], [axis])
        sizes = (*dims[:axis], dims[axis] - first - mark.behind, *dims[axis + 1 :])
        parts = [self.take(own, axis, rank, sizes, 0, stage, pictures)]
        if first:
            parts.insert(0, self._other(value, parts[0], 0, first, axis, pictures))
        if mark.behind:
            parts.append(self._other(value, parts[-1], dims[axis] - mark.behind, END, axis, pictures))
        joined: ir.Value = op("Concat", *parts, axis=axis)
        return joined

    def _other(
        self, value: ir.Value, own: ir.Value, first: int, last: int, axis: int, pictures: int | None
    ) -> ir.Value:
        """Entries of other streams, for as many pictures as `own` has."""
        op, part = self.op, self.op("Slice", value, [first], [last], [axis])
        if pictures is None:
            return part
        shape = op("Shape", part)
        batch = op("Slice", op("Shape", own), [pictures], [pictures + 1])
        ahead = [op("Slice", shape, [0], [pictures])] if pictures else []
        wide: ir.Value = op(
            "Expand", part, op("Concat", *ahead, batch, op("Slice", shape, [pictures + 1], [END]), axis=0)
        )
        return wide

    def _members(self, offset: int, stage: Stage) -> ir.Value:
        """[B,N,K] float32: 1 where original token n lives in token k, counted by its validity."""
        key = ("members", offset)
        if key not in stage.cache:
            goes = self.op("Unsqueeze", stage.source_map, [-1])
            slots = np.arange(offset, stage.count, dtype=np.int64).reshape(1, 1, -1)
            members = self.op("Cast", self.op("Equal", goes, slots), to=FLOAT)
            members = members if self.validity is None else self.op("Mul", members, self.validity)
            stage.cache[key] = self.op("Slice", members, [offset], [2**31 - 1], [1]) if offset else members
        return stage.cache[key]

    def _share(self, offset: int, stage: Stage) -> ir.Value:
        """[B,N,K] float32: the same, so that every column with valid members sums to one."""
        key = ("share", offset)
        if key not in stage.cache:
            members = self._members(offset, stage)
            total = self.op("Max", self.op("ReduceSum", members, [1], keepdims=1), LEAST)
            stage.cache[key] = self.op("Div", members, total)
        return stage.cache[key]

    def _over_keys(self, value: ir.Value, rank: int, offset: int, stage: Stage) -> ir.Value:
        """[..,K] float32 from [..,N]: the mean over the members of each key."""
        share = self._share(offset, stage)
        value = self.op("Cast", value, to=FLOAT)
        if rank == 2:
            return self.op("Squeeze", self.op("MatMul", self.op("Unsqueeze", value, [1]), share), [1])
        share = share if rank == 3 else self.op("Unsqueeze", share, list(range(1, rank - 2)))
        return self.op("MatMul", value, share)

    def _log(self, mean: ir.Value) -> ir.Value:
        return self.op("Max", self.op("Log", self.op("Max", mean, LEAST)), LOWEST)

    def _mean(self, value: ir.Value, rank: int, offset: int, stage: Stage, *, truth: bool) -> ir.Value:
        """Keys: log of the mean of exp; for conditions, whether any member holds."""
        if truth:
            return self.op("Greater", self._over_keys(value, rank, offset, stage), 0.0)
        bias = self.op("Max", self.op("Cast", value, to=FLOAT), LOWEST)
        bounded = self._log(self._over_keys(self.op("Exp", bias), rank, offset, stage))
        return self.op("Cast", bounded, to=int(value.dtype or ir.DataType.FLOAT))

    def _shown_share(self, node: ir.Node, share: ir.Value | None) -> None:
        """Add to the scores that a constant condition shows the log of the members it shows, of all a key has."""
        if share is None:
            return
        place = next((place for place in (1, 2) if hides(node, 3 - place)), None)
        scores = node.inputs[place] if place is not None else None
        if place is None or scores is None:
            return
        kind = int(scores.dtype or ir.DataType.FLOAT)
        node.replace_input_with(place, self.op("Add", scores, self.op("Cast", share, to=kind)))

    def _average(
        self, value: ir.Value, axis: int, rank: int, dims: tuple[int, ...], offset: int, stage: Stage
    ) -> ir.Value:
        """One number per token: the mean over the members."""
        share = self._share(offset, stage)
        last = [*(other for other in range(rank) if other != axis), axis]
        moved = self.op(
            "Cast", value if axis == rank - 1 else self.op("Transpose", value, perm=last), to=FLOAT
        )
        if rank == 2:
            moved = self.op("Unsqueeze", moved, [1])
        elif rank > 3:
            share = self.op("Unsqueeze", share, list(range(1, rank - 2)))
        mean = self.op("MatMul", moved, share)
        if rank == 2:
            mean = self.op("Squeeze", mean, [1])
        back = (
            mean
            if axis == rank - 1
            else self.op("Transpose", mean, perm=[last.index(other) for other in range(rank)])
        )
        if value.dtype == ir.DataType.BOOL:
            return self.op("Greater", back, 0.0)
        return self.op("Cast", back, to=int(value.dtype or ir.DataType.FLOAT))


def _turn(node: ir.Node, index: int) -> str | None:
    """What makes of an input a bias that is added, or a condition that shows a key: of those alone a mean is taken."""
    if node.op_type == "Sub" and index == 1:
        return "Neg"
    return "Not" if node.op_type == "Where" and index == 0 and hides(node, 1) else None


def check_biases(core: Core, shapes: Shapes) -> None:
    """Whether merged keys can have their bias: the mean of each of several alone is not right. Raises: UnsupportedError."""
    found = []
    for node, index in core.masks:
        value = node.inputs[index]
        dims = shapes.of(value) if value is not None and shapes.known(value) else ()
        adds = node.op_type in ("Add", "Sub", "Sum")
        if adds and len(dims) > 1 and dims[-1] == core.keys and dims[-2] > 1:
            found.append(node)
    if len(found) > 1:
        names = " and ".join(f"{node.op_type} node {node.name!r}" for node in reversed(found))
        raise UnsupportedError(
            f"{names} each add a bias for every pair of tokens to the same scores, and merged tokens need the mean over all "
            "of them together; add the biases to one another before they meet the scores, or use a method that drops "
            "tokens, e.g. topk"
        )
