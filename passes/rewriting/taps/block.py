"""What methods read at a site of a graph: keys, attention rows, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.marks import Mark, Marks
from tokenrt.passes.analysis.stream import layout
from tokenrt.passes.graph.quantization import decoded
from tokenrt.passes.graph.shapes import Shapes, describe
from tokenrt.passes.methods.contract import Taps, Value
from tokenrt.passes.methods.parts.steps import head_mean
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import FLOAT, LOWEST, additive, end_of_real, log_size, received_of_real
from tokenrt.passes.rewriting.streams import to_rows
from tokenrt.passes.rewriting.taps.again import repeated
from tokenrt.passes.rewriting.taps.plain import plain_keys

END = 2**31 - 1


@dataclass(frozen=True)
class GraphTaps:
    """The `Taps` of one attention in a graph, at `count` tokens.

    tokens is [B,N,C] already; batch is -1 where it is dynamic. padded: a size of 0 says that a token is padding.
    weighted: attention is proportional, so the model itself adds log size to its scores. entry: what enters the
    block, as the analysis saw it; entered: what stands in its place now. gains: makes an input [B,N] of the model, by its name.
    pictures: where several rows of each lie side by side in streams, how many there are; of all else B then counts the rows.
    """

    op: GraphOps
    core: Core
    shapes: Shapes
    marks: Mapping[ir.Value, Marks]
    count: int
    batch: int
    tokens: ir.Value
    size: ir.Value | None
    padded: bool = False
    weighted: bool = True
    state: Mapping[str, ir.Value] = field(default_factory=dict)
    entry: ir.Value | None = None
    entered: ir.Value | None = None
    gains: Callable[[str], ir.Value] | None = None
    pictures: int = 0

    def layer(self, role: str, block: int) -> Taps:
        raise UnsupportedError(
            f"the method reads another block as {role!r}, which a site behind a block does not offer"
        )

    def text(self) -> ir.Value:
        return self._input("text")

    def text_mask(self) -> ir.Value | None:
        return None

    def quotas(self) -> ir.Value:
        return self._input("quotas")

    def importance(self) -> ir.Value:
        return self._input("importance") if self.gains is None else self.gains("importance")

    def segments(self) -> ir.Value:
        return self._input("segments") if self.gains is None else self.gains("segments")

    def pixels(self) -> ir.Value:
        return self._input("pixels")

    def update(self) -> ir.Value:
        return self._input("update") if self.gains is None else self.gains("update")

    def projected(self, tokens: Value) -> ir.Value:
        raise UnsupportedError(
            "the method carries tokens to an output, which a site behind a block does not offer"
        )

    def _input(self, name: str) -> NoReturn:
        raise UnsupportedError(
            f"the method takes the input {name!r}, which a site behind a block does not offer"
        )

    def stream(self) -> ir.Value:
        assert self.entry is not None
        return self._rows(self.entry, self.entered)

    def normed(self) -> ir.Value:
        """[B,N,C] float32: the input of the product with weights that the keys come from."""
        todo = [self.core.key]
        for value in todo:
            producer = value.producer()
            if producer is None:
                continue
            data = [step for step in producer.inputs if step is not None and self.marks.get(step)]
            others = [step for step in producer.inputs[:2] if step is not None and step not in data]
            weighed = producer.op_type in ("MatMul", "MatMulInteger", "Gemm")
            if weighed and others and others[0].const_value is not None:
                return self._rows(decoded(data[0]))
            todo.extend(step for step in data if step not in todo)
        raise UnsupportedError(
            f"the keys of attention {self.core.node.name!r} come from no product with weights, and the method reads "
            "what such a product reads; use a method that compares keys, e.g. tome"
        )

    def _rows(self, value: ir.Value, now: ir.Value | None = None) -> ir.Value:
        """A stream of tokens as [B,N,C] float32; now: what stands in its place after earlier reductions."""
        held = layout(self.marks.get(value, ()), self.shapes.of(value), self.pictures)
        if held is None:
            raise UnsupportedError(
                f"tensor {value.name!r} {describe(self.shapes.of(value))}, which the method reads, is no plain stream of tokens"
            )
        return self._float(to_rows(self.op, now or value, held, self.count))

    def metric(self) -> ir.Value:
        mean = self._mean_key()
        if not self.padded or self.size is None:
            return mean
        # Padding resembles padding and nothing else: it merges first, and what it holds decides nothing.
        hidden = self.op("Cast", self.op("Equal", self.size, 0.0), to=FLOAT)
        return self.op("Concat", self.op("Mul", mean, self.op("Sub", 1.0, hidden)), hidden, axis=2)

    def _mean_key(self) -> ir.Value:
        """Keys averaged over heads: [B,N,D]."""
        core = self.core
        value, axis, _ = self._plain_keys()
        if self.joint is not None:
            return head_mean(self.op, self.keys(), core.key_heads, core.width)
        if axis == 2 and core.key_transposed and len(self.shapes.of(core.key)) == 4:
            mean = head_mean(self.op, self._float(core.key), core.key_heads, self.count)
            return self.op("Transpose", mean, perm=[0, 2, 1])
        keys = self.op("Transpose", value, perm=[0, 2, 1, 3]) if axis == 2 else value
        return head_mean(self.op, self._float(keys), core.key_heads, core.width)

    def class_attention(self) -> ir.Value:
        if self.padded and self.size is not None:
            return self._row_attention(end_of_real(self.op, self.size, last=False))
        return self._attention(0, 1)

    def received_attention(self) -> ir.Value:
        if self.padded and self.size is not None:
            return received_of_real(self.op, self.attention(), self.size)
        return self._attention(0, self.count)

    def last_attention(self) -> ir.Value:
        if self.padded and self.size is not None:
            return self._row_attention(end_of_real(self.op, self.size, last=True))
        last = self.op(
            "Slice", self._by_head(self.core.query, self.core.heads, transposed=False), [-1], [END], [2]
        )
        return self._one_attention(self._float(last), self._bias(self.count - 1, 1))

    def _row_attention(self, which: ir.Value) -> ir.Value:
        """[B,N] attention of one query of each text, averaged over heads; which [B,1,N]: 1 at that query, 0 elsewhere."""
        op, row = self.op, self.op("Unsqueeze", which, [1])
        bias = self._bias(0, self.count)
        if self.core.causal or not all(self._one_row(node, index) for node, index in self.core.masks):
            bias = op("MatMul", row, op("Add", bias, np.zeros((1, 1, self.count, 1), np.float32)))
        return self._one_attention(op("MatMul", row, self.queries()), bias)

    def _one_attention(self, asking: ir.Value, bias: ir.Value) -> ir.Value:
        """[B,N] attention of one query [B,H,1,D] with a bias added, averaged over heads."""
        return self.op("ReduceMean", self._weights(asking, bias, 1), axes=[1, 2], keepdims=0)

    def _weights(self, asking: ir.Value, bias: ir.Value, rows: int) -> ir.Value:
        """[B,H,R,N] attention of R queries [B,H,R,D] with a bias added; heads of keys are not repeated."""
        op, core, (keys, scale) = self.op, self.core, self._scaled_keys()
        shared = core.heads // core.key_heads
        if shared > 1:
            asking = op("Reshape", asking, [self.batch, core.key_heads, shared * rows, core.width])
        logits = op("MatMul", asking, op("Transpose", keys, perm=[0, 1, 3, 2]))
        if shared > 1:
            logits = op("Reshape", logits, [self.batch, core.heads, rows, self.count])
        weights: ir.Value = op("Softmax", op("Add", op("Mul", logits, scale), bias), axis=-1)
        return weights

    def queries(self) -> ir.Value:
        """[B,H,N,D] float32."""
        return self._float(self._own(self._by_head(self.core.query, self.core.heads, transposed=False), 2))

    def keys(self) -> ir.Value:
        """[B,H,N,D] float32."""
        return self._scaled_keys()[0]

    def values(self) -> ir.Value:
        """[B,H,N,D] float32."""
        return self._float(
            self._own(self._by_head(self.core.value, self.core.key_heads, transposed=False), 2)
        )

    def attention(self) -> ir.Value:
        """[B,H,N,N] float32, computed beside the model's own attention."""
        self._readable()
        weights = self._repeated()
        if weights is not None:
            return weights
        keys, scale = self._asked_keys()
        # The scale comes last: of a scaled MatMul whose input the model scales too, ONNX Runtime 1.31 drops the model's
        # own Mul when it fuses both (MatMulScaleFusion), and fails to load.
        logits = self.op("MatMul", self.queries(), self.op("Transpose", keys, perm=[0, 1, 3, 2]))
        logits = self.op("Mul", logits, scale)
        return self.op("Softmax", self.op("Add", logits, self._bias(0, self.count)), axis=-1)

    def _repeated(self) -> ir.Value | None:
        """[B,H,N,N] by the model's own nodes, once more; None where it has none, or weighs no sizes and there are some."""
        unweighed = self.size is not None and not self.weighted
        return None if unweighed else repeated(self.op, self.core, self.shapes)

    def _one_row(self, node: ir.Node, index: int) -> bool:
        """Whether a mask is known to be the same for all queries."""
        value = node.inputs[index]
        dims = self.shapes.of(value) if value is not None and self.shapes.known(value) else None
        return value is None or (dims is not None and (len(dims) < 2 or dims[-2] == 1))

    def _counted(self, size: ir.Value) -> ir.Value:
        """What each key counts in attention: its size, or one where the model weighs no sizes and there is padding."""
        return self.op("Min", size, 1.0) if self.padded and not self.weighted else size

    def _scaled_keys(self) -> tuple[ir.Value, float]:
        """Keys [B,H,N,D] and the scale of their products with the queries."""
        value, axis, factor = self._plain_keys()
        value = self._own(value, 3 - axis)
        keys = self._float(self.op("Transpose", value, perm=[0, 2, 1, 3]) if axis == 2 else value)
        return keys, self.core.scale * factor

    def _own(self, value: ir.Value, axis: int) -> ir.Value:
        """Of entries of this stream and others those of this one."""
        if self.joint is None:
            return value
        first = self.joint.front
        own: ir.Value = self.op("Slice", value, [first], [first + self.count], [axis])
        return own

    def _asked_keys(self) -> tuple[ir.Value, float]:
        """Keys [B,H,N,D] with a head for each of the queries', and the scale of their products."""
        (keys, scale), core = self._scaled_keys(), self.core
        if core.key_heads != core.heads:
            shared = np.repeat(np.arange(core.key_heads), core.heads // core.key_heads)
            keys = self.op("Gather", keys, shared, axis=1)
        return keys, scale

    def _attention(self, first: int, rows: int) -> ir.Value:
        keys, scale = self._asked_keys()
        return self.op(
            "TokenScore",
            self.queries(),
            keys,
            self._bias(first, rows),
            scale=scale,
            first_row=first,
            end_row=first + rows,
        )

    def _bias(self, first: int, rows: int) -> ir.Value:
        """What the masks add to these rows of the scores, and log size where tokens were merged.

        Broadcasts to [B,H,R,N]: a relative position bias has values of its own for each head and row.
        Raises: UnsupportedError where the scores are more than scaled products plus biases, head by head.
        """
        self._readable()
        parts = (
            [] if self.size is None else [log_size(self.op, self._counted(self.size), self.batch, self.count)]
        )
        for node, index in self.core.masks:
            mask = additive(self.op, node, index)
            if mask is None:
                continue
            value = node.inputs[index]
            rank = len(
                self.shapes.of(value if value is not None and self.shapes.known(value) else node.outputs[0])
            )
            if rank >= 2:
                mask = self.op("Slice", mask, [first], [first + rows], [rank - 2])
            parts.append(mask if rank != 3 else self._unfolded(mask, node))
        if self.core.causal and first < self.count - 1:
            later = np.triu(np.full((rows, self.count), LOWEST, np.float32), first + 1)
            parts.append(self.op.constant(later[None, None]))
        total = parts[0] if parts else self.op.constant(np.zeros((1, 1, 1, self.count), np.float32))
        for part in parts[1:]:
            total = self.op("Add", total, part)
        return total

    @cached_property
    def joint(self) -> Mark | None:
        """Where the tokens stand among those of other streams, as the keys have them; None where they stand alone."""
        return next((mark for mark in self.marks.get(self.core.key, ()) if mark.joint), None)

    def _readable(self) -> None:
        """Raises: UnsupportedError where the scores are more than scaled products plus biases, or those of another stream too."""
        if self.joint is not None:
            raise UnsupportedError(
                f"attention at {self.core.node.op_type} node {self.core.node.name!r} runs over the tokens of another stream too, "
                "and the method reads its scores; use a method or an option that reads tokens or keys, e.g. tome, tomesd, or "
                "topk with score=key_norm"
            )
        check_readable(self.core)

    def _unfolded(self, mask: ir.Value, node: ir.Node) -> ir.Value:
        """[B,H,R,N] from a mask with three axes."""
        if len(self.shapes.of(node.outputs[0])) == 4:
            return mask
        if self.core.heads > 1:
            raise UnsupportedError(
                f"{node.op_type} node {node.name!r} adds a mask to scores whose heads are folded into the batch "
                f"{describe(self.shapes.of(node.outputs[0]))}; a method that reads attention needs them apart"
            )
        return self.op("Unsqueeze", mask, [1])

    def _plain_keys(self) -> tuple[ir.Value, int, float]:
        """Keys as [B,H,N,D] (head axis 1) or [B,N,H,D] (head axis 2), and the part of the scale that they lack."""
        core, found = self.core, plain_keys(self.core, self.shapes, self.marks)
        return found or (self._by_head(core.key, core.key_heads, transposed=core.key_transposed), 1, 1.0)

    def _by_head(self, value: ir.Value, heads: int, *, transposed: bool) -> ir.Value:
        """Any of the forms an attention reads, as [B,H,N,D]."""
        dims, core = self.shapes.of(value), self.core
        count = self.count if self.joint is None else self.joint.entries(self.count)
        if len(dims) == 3 and core.fused:
            split = self.op("Reshape", value, [self.batch, count, heads, core.width])
            return self.op("Transpose", split, perm=[0, 2, 1, 3])
        if len(dims) == 3:
            last = [core.width, count] if transposed else [count, core.width]
            value = self.op("Reshape", value, [self.batch, heads, *last])
        return self.op("Transpose", value, perm=[0, 1, 3, 2]) if transposed else value

    def _float(self, value: ir.Value) -> ir.Value:
        return self.op("Cast", value, to=FLOAT)


def check_readable(core: Core) -> None:
    """Whether scores are scaled products plus biases. Raises: UnsupportedError."""
    unread = core.unread
    if unread is None:
        return
    raise UnsupportedError(
        f"{unread.op_type} node {unread.name!r} makes of the scores more than a scale and added biases do, so the attention "
        "cannot be recomputed beside it; use a method or an option that does not read attention, e.g. tome, or topk with "
        "score=key_norm"
    )


class InletTaps(GraphTaps):
    """The taps at an attention's input: its queries, keys and values are still to be made of what is left."""

    def normed(self) -> ir.Value:
        return self._float(self.tokens)

    def _plain_keys(self) -> NoReturn:
        raise UnsupportedError(
            "tokens leave at the attention's input here, before it has queries, keys, values or scores: "
            "the method can read the tokens themselves only"
        )

    def _by_head(self, value: ir.Value, heads: int, *, transposed: bool) -> NoReturn:
        self._plain_keys()
