"""Apply the edits behind a reduction: constants, masks, pools weighted by size, proportional attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.marks import (
    BiasKeys,
    Edit,
    Mark,
    ReduceAuxiliary,
    Reorder,
    SetInput,
    Shorten,
    WeighPool,
)
from tokenrt.passes.analysis.rules.reduction import reduced_axes
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.model import substitute
from tokenrt.passes.graph.shapes import BATCH, Shapes, describe
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.route import Route
from tokenrt.passes.rewriting.auxiliary import LEAST, Auxiliaries
from tokenrt.passes.rewriting.logits import FLOAT, additive, log_size
from tokenrt.passes.rewriting.stages import Stage
from tokenrt.passes.rewriting.taps.common import repeated
from tokenrt.passes.rewriting.units import turned

END = 2**31 - 1


@dataclass(frozen=True)
class Repairs:
    """Applies edits to a graph. stages grows while reductions are inserted; counts are the plan's.

    rows: the pictures B of the stream, as shapes count them; batch: the same as a Reshape says it. across: rows of a picture
    whose tokens leave alike, which attention reads as so many pictures. originals: inputs that follow the tokens, as they were
    for all of them.
    """

    graph: ir.Graph
    op: GraphOps
    shapes: Shapes
    path: Route
    counts: Sequence[int]
    stages: Sequence[Stage]
    auxiliaries: Auxiliaries
    proportional: bool
    batch: int
    rows: int
    across: int = 1
    originals: dict[tuple[ir.Node, int], ir.Value] = field(default_factory=dict)

    def apply(self, edit: Edit) -> None:
        self.op.before, self.op.prefix = edit.node, "tokenrt_repair"
        if isinstance(edit, SetInput):
            goal = np.asarray(edit.make(self.counts), np.int64)
            edit.node.replace_input_with(edit.index, self.op.constant(goal))
        elif isinstance(edit, ReduceAuxiliary):
            stage = self.stages[next(mark.stage for _, mark in edit.axes)]
            value = edit.node.inputs[edit.index]
            assert value is not None
            self.originals.setdefault((edit.node, edit.index), value)
            edit.node.replace_input_with(edit.index, self.auxiliaries.reduce(edit, stage))
        elif isinstance(edit, WeighPool):
            self._weigh(edit)
        elif isinstance(edit, Reorder):
            self._reorder(edit)
        elif isinstance(edit, Shorten):
            self._shorten(edit)
        else:
            self._bias(edit)

    def _shorten(self, edit: Shorten) -> None:
        """Take as many entries of an input as there are tokens left; all of them are the same."""
        value, op, mark = edit.node.inputs[edit.index], self.op, edit.mark
        assert value is not None
        dims = [-1 if size % BATCH == 0 else size for size in self.shapes.of(value)]
        before, behind = dims[: mark.axis], dims[mark.axis + 1 :]
        count = mark.entries(self.counts[0])
        outer = -1 if mark.outer % BATCH == 0 else mark.outer
        apart = op("Reshape", value, [*before, outer, count, mark.inner, *behind])
        left = mark.size(self.counts)
        some = op("Slice", apart, [0], [mark.entries(self.counts[mark.stage])], [mark.axis + 1])
        goal = [*before, -1 if left % BATCH == 0 else left, *behind]
        edit.node.replace_input_with(edit.index, op("Reshape", some, goal))

    def _reorder(self, edit: Reorder) -> None:
        """Let a Gather take what is left in the order in which it took all."""
        index = turned(self.op, self.stages[edit.mark.stage], edit.mark)
        if isinstance(index, np.ndarray):
            edit.node.replace_input_with(1, self.op.constant(index[0]))
        elif self.rows == 1:
            edit.node.replace_input_with(1, self.op("Squeeze", index, [0]))
        else:
            raise UnsupportedError(
                f"Gather node {edit.node.name!r} brings the tokens of all pictures into one order, and each has lost others: fix "
                "the batch to 1, or drop --short"
            )

    def _size(self, mark: Mark) -> ir.Value | None:
        """[B,K,1] sizes of the tokens a mark counts, or None while all are one."""
        size = self.stages[mark.stage].size
        if size is not None and mark.joint:
            one = self.op.constant(np.float32(1))
            padded: ir.Value = self.op("Pad", size, np.array([0, mark.front, 0, 0, mark.behind, 0]), one)
            return padded
        return self.op("Slice", size, [mark.offset], [END], [1]) if size is not None and mark.offset else size

    def _bias(self, edit: BiasKeys) -> None:
        """Add log size to the scores of a softmax, or to the mask of an Attention node."""
        size, node, op = self._size(edit.mark), edit.node, self.op
        if size is None:
            return
        if not self.proportional:  # Sizes do not count; but what is made of no token, of size 0, is hidden.
            if not self.stages[edit.mark.stage].empties:
                return
            size = op("Min", size, 1.0)
        length = edit.mark.size(self.counts)
        scores = node.inputs[0]
        assert scores is not None
        if self.across > 1:
            size = repeated(op, size, self.across, length)
        batch = self.batch if self.batch < 0 else self.batch * self.across
        bias = log_size(op, size, batch, length)
        kind = int(scores.dtype or ir.DataType.FLOAT)
        if node.op_type == "Attention":
            self._bias_node(node, bias, kind)
            return
        dims = self.shapes.of(scores)
        if len(dims) == 3:
            heads = dims[0] // (self.rows * self.across)
            bias = op("Expand", bias, np.asarray([1, heads, 1, 1])) if heads > 1 else bias
            bias = op("Reshape", bias, [-1 if batch < 0 else batch * heads, 1, length])
        elif len(dims) != 4:
            bias = op("Reshape", bias, [batch, *[1] * (len(dims) - 2), length])
        node.replace_input_with(0, op("Add", scores, op("Cast", bias, to=kind)))

    def _bias_node(self, node: ir.Node, bias: ir.Value, kind: int) -> None:
        op, query = self.op, node.inputs[0]
        assert query is not None
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            bias = op("Add", additive(op, node, 3), bias)
        node.resize_inputs(max(4, len(node.inputs)))
        axis = len(self.shapes.of(query)) - 2
        mark = next((mark for mark in self.path.flow.inputs[node][0] if mark.axis == axis), None)
        rows = mark.size(self.counts) if mark else self.shapes.of(query)[axis]
        # ONNX Runtime refuses a mask with one row for all queries.
        bias = op("Expand", bias, np.asarray([1, 1, rows, 1]))
        node.replace_input_with(3, op("Cast", bias, to=kind))

    def _weigh(self, edit: WeighPool) -> None:
        """A mean weighted by size; a sum over every original token."""
        node, op, mark = edit.node, self.op, edit.span[0]
        size, data = self._size(mark), node.inputs[0]
        assert data is not None
        kind, left = int(data.dtype or ir.DataType.FLOAT), self.counts[mark.stage] - mark.offset
        dropped, averages = self.stages[mark.stage].dropped, node.op_type in ("ReduceMean", "ReduceSum")
        shown = self._shown(edit, size) if dropped and averages else None
        if shown is not None:
            data = op("Mul", data, op("Cast", shown, to=kind))
            node.replace_input_with(0, data)
        elif size is None and node.op_type == "ReduceSum":
            scale = np.float32((self.counts[0] - mark.offset) / left)
            node.replace_input_with(0, op("Mul", data, op("Cast", op.constant(scale), to=kind)))
        if size is None:
            return
        weight = op("Cast", self._beside(edit, size), to=kind)
        weighted = op("Mul", data, weight)
        if node.op_type == "ReduceSum":
            node.replace_input_with(0, weighted)
            return
        axes, keep = sorted(reduced_axes(node, edit.rank) or ()), 1
        if not node.op_type.startswith("Global") and "keepdims" in node.attributes:
            keep = node.attributes["keepdims"].as_int()
        if axes == [mark.axis for mark in edit.span]:
            total, mass = (op("ReduceSum", part, axes, keepdims=keep) for part in (weighted, weight))
        else:  # Means: of the weights there is one along the other axes, of what they weigh as many as ever.
            total, mass = (op("ReduceMean", part, axes=axes, keepdims=keep) for part in (weighted, weight))
        substitute(self.graph, node.outputs[0], op("Div", total, mass))

    def _beside(self, edit: WeighPool, size: ir.Value) -> ir.Value:
        """The sizes with the axes of what a pool reads."""
        node, op, mark = edit.node, self.op, edit.span[0]
        data, shape = edit.node.inputs[0], [1] * edit.rank
        shape[mark.axis] = self.counts[mark.stage] - mark.offset
        if self.rows > 1:
            pictures = 1 if mark.axis == 0 else 0
            if data is not None and self.shapes.known(data) and self.shapes.of(data)[pictures] != self.rows:
                raise UnsupportedError(
                    f"{node.op_type} node {node.name!r} pools tokens, and it cannot be told which axis of "
                    f"{describe(self.shapes.of(data))} counts the pictures"
                )
            shape[pictures] = self.batch
            size = size if pictures == 0 else op("Transpose", size, perm=[1, 0, 2])
        beside: ir.Value = op("Reshape", size, shape)
        return beside

    def _shown(self, edit: WeighPool, size: ir.Value | None) -> ir.Value | None:
        """What a sum over the words that a mask shows is multiplied with: all of them by those that are left.

        What the model divides the sum by counts all words; so a mean over them is one over those that are left. None
        where no mask of the model's inputs is in what is summed.
        """
        op, mark, axis = self.op, edit.span[0], edit.span[0].axis
        found = self._mask(edit) if len(edit.span) == 1 else None
        if found is None:
            return None
        every, left = (op("Cast", value, to=FLOAT) for value in found)
        sizes = None if size is None else self._beside(edit, size)
        left = left if sizes is None else op("Mul", left, sizes)
        whole, rest = (op("ReduceSum", value, [axis], keepdims=1) for value in (every, left))
        share = op("Where", op("Greater", rest, 0.0), op("Div", whole, op("Max", rest, LEAST)), 0.0)
        if edit.node.op_type == "ReduceSum":
            made: ir.Value = share
            return made
        number = float(self.counts[mark.stage] - mark.offset)
        mass = number if sizes is None else op("ReduceSum", sizes, [axis], keepdims=1)
        scaled: ir.Value = op("Mul", share, op("Div", mass, float(self.counts[0] - mark.offset)))
        return scaled

    def _mask(self, edit: WeighPool) -> tuple[ir.Value, ir.Value] | None:
        """The mask in front of a pool, 1 for words, for all tokens and for those that are left."""
        value = edit.node.inputs[0]
        while value is not None and (node := value.producer()) is not None:
            places = {
                index: self.originals[node, index] for index in (0, 1) if (node, index) in self.originals
            }
            if node.op_type == "Mul" and places:
                ((index, every),) = places.items()
                left = node.inputs[index]
                masks = left is not None and depends_on_input(every)
                same = self.shapes.known(every) and len(self.shapes.of(every)) == edit.rank
                return (every, left) if masks and same and left is not None else None
            if node.op_type == "Where" and (node, 0) in self.originals:
                every, left = self.originals[node, 0], node.inputs[0]
                kept = next((index for index in (1, 2) if _zero(node.inputs[3 - index])), None)
                if kept is None or left is None or len(self.shapes.of(every)) != edit.rank:
                    return None
                return (every, left) if kept == 1 else (self.op("Not", every), self.op("Not", left))
            if node.op_type not in ("Cast", "Identity"):
                return None
            value = node.inputs[0]
        return None


def _zero(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.const_value.numpy().any()
