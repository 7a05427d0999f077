"""The walk that casts: every float32 value of a graph becomes half, or stays, from the node on that gives it."""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from tokenrt.passes.forms.limits import STANDARD, spelled
from tokenrt.passes.forms.precision import ELEMENTWISE, HALF, INDEX_INPUTS, INSERTED, MOVED, TYPED
from tokenrt.passes.graph.quantization import PAIR
from tokenrt.passes.ops import DOMAIN, OPERATORS

FULL = ir.DataType.FLOAT

WIDEST = {ir.DataType.FLOAT8E4M3FN: 448.0, ir.DataType.FLOAT8E5M2: 57344.0}
"""The largest number of a code, where that is more than 8 bits of an integer hold."""


class Caster:
    """Walks the graph once in order."""

    def __init__(
        self, model: ir.Model, half: ir.DataType, keep_io: bool, full: Set[str] = frozenset()
    ) -> None:
        """Set up for `model`. full: first outputs of nodes that stay in float32 whatever the lists say."""
        self.model, self.graph, self.half, self.keep_io = model, model.graph, half, keep_io
        self.full = full
        self.opset = model.opset_imports.get("", 0)
        self.casts = 0
        self.clamped: list[str] = []
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {
            str(value.name)
            for value in [*self.graph.inputs, *self.graph.initializers.values()]
            + [value for node in self.graph.all_nodes() for value in node.outputs]
        }
        limits = np.finfo(half.numpy()) if half == ir.DataType.FLOAT16 else None
        self._most = float(limits.max) if limits else float("inf")
        self._least = float(limits.smallest_subnormal) if limits else 0.0

    def run(self) -> tuple[int, int]:
        """Convert everything; returns the nodes in half and in float32."""
        inner = self._captured()
        if not self.keep_io:
            for value in self.graph.inputs:
                if value.dtype == FULL and value.name not in self.graph.initializers:
                    value.dtype = self.half
        outputs = [value.dtype for value in self.graph.outputs]
        half = full = 0
        for node in [*self.graph]:
            before = [value.dtype for value in node.outputs]
            self._node(node)
            turned = before != [value.dtype for value in node.outputs]
            half, full = half + turned, full + (FULL in before and not turned)
        for value, uses in inner.items():
            for node, index in uses:
                node.replace_input_with(index, self._as(value, FULL))
        if self.keep_io:
            self._outputs(outputs)
        for name in [*self.graph.initializers]:
            value = self.graph.initializers[name]
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]
        return half, full

    def _node(self, node: ir.Node) -> None:
        """Give one node its types."""
        if node.op_identifier() in self.model.functions or node.domain == DOMAIN:
            self._call(node)
            return
        kind = self._kind(node)
        if kind is None:
            return
        if kind == self.half and not _takes(node.op_type, self.opset, self.half):
            kind = FULL
        keep = INDEX_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and index not in keep and value.dtype in (FULL, self.half):
                node.replace_input_with(index, self._as(value, kind))
        for value in node.outputs:
            if value.dtype == FULL and node.op_type not in TYPED:
                value.dtype = kind

    def _kind(self, node: ir.Node) -> ir.DataType | None:
        """The type a standard node computes in; None for one that takes and gives what it does."""
        data = [
            value.dtype
            for index, value in enumerate(node.inputs)
            if value is not None
            and value.dtype in (FULL, self.half)
            and index not in INDEX_INPUTS.get(node.op_type, ())
            and not _is_constant(value)
        ]
        inserted = (node.name or "").startswith(INSERTED)
        if node.op_type == "CastLike":
            if node.inputs[1] is not None and node.inputs[1].dtype is not None:
                node.outputs[0].dtype = node.inputs[1].dtype
            return None
        if node.op_type in TYPED or node.domain not in STANDARD or node.op_type == "Constant":
            return None if node.domain in STANDARD else FULL
        if node.outputs[0].name in self.full:
            return FULL
        if not inserted and node.op_type in HALF:
            return self.half
        if node.op_type in PAIR:
            return self.half if self._counts_in_half(node) else FULL
        if not data:
            # Rows of a table of weights, as an embedding's.
            return self.half if node.op_type == "Gather" and not inserted else FULL
        if node.op_type in MOVED:
            return self.half if self.half in data else FULL
        if node.op_type == "Softmax" and not inserted and _in_attention(node) and self.half in data:
            return self.half
        if node.op_type not in ELEMENTWISE or (inserted and not _before_softmax(node)):
            return FULL
        if inserted:
            return self.half if self.half in data else FULL
        # What a reduction gives to the model's own nodes is half again from there on.
        given = [
            value
            for value in node.inputs
            if value is not None and value.dtype == FULL and not _is_constant(value)
        ]
        from_reduction = all(_is_inserted(value.producer()) for value in given)
        if (self.half in data or given) and from_reduction and self._fits(node):
            return self.half
        return FULL

    def _call(self, node: ir.Node) -> None:
        """Casts at the boundary of a function: float32, but for what our operators take in half."""
        operator = OPERATORS.get(node.op_type) if node.domain == DOMAIN else None
        tokens = operator.inputs.index("tokens") if operator and "tokens" in operator.inputs else None
        wide = [operator.inputs.index(name) for name in operator.widens] if operator else []
        widened = all(
            value is not None and value.dtype == self.half for value in map(node.inputs.__getitem__, wide)
        )
        for index, value in enumerate(node.inputs):
            stays = index == tokens or (widened and index in wide)
            if value is not None and value.dtype == self.half and not stays:
                node.replace_input_with(index, self._as(value, FULL))
        given = None if tokens is None else node.inputs[tokens]
        if operator is None or given is None or given.dtype != self.half:
            return
        if "type" in operator.attributes:
            node.attributes["type"] = ir.AttrInt64("type", int(self.half))
        for value, kind in zip(node.outputs, operator.types, strict=False):
            if kind == "tokens":
                value.dtype = self.half

    def _fits(self, node: ir.Node) -> bool:
        """Whether no constant of the node would vanish: a floor of 1e-12 is no floor in float16."""
        for value in node.inputs:
            tensor = None if value is None or value.dtype != FULL else ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.size == 1:
                size = abs(float(tensor.numpy().ravel()[0]))
                if 0 < size < self._least:
                    return False
        return True

    def _counts_in_half(self, node: ir.Node) -> bool:
        """Whether half holds every scale of a pair to its last bit but rounding, and the largest of the values behind it."""
        scale = node.inputs[1]
        tensor = None if scale is None else ir.convenience.get_const_tensor(scale)
        codes = (node.outputs if node.op_type == "QuantizeLinear" else node.inputs)[0]
        if tensor is None or codes is None or codes.dtype is None or codes.dtype.bitwidth > 8:
            return False
        largest = float(np.finfo(np.float16).max) / WIDEST.get(codes.dtype, 256.0)
        sizes = np.abs(np.asarray(tensor.numpy(), np.float32))
        least = float(np.finfo(np.float16).smallest_normal)
        return self._most == float("inf") or bool((sizes >= least).all() and (sizes <= largest).all())

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """The value in another type: a converted constant, or a Cast that all its users share."""
        if value.dtype == kind:
            return value
        if (value, kind) not in self._made:
            self._made[value, kind] = self._constant(value, kind) or self._cast(value, kind)
        return self._made[value, kind]

    def _constant(self, value: ir.Value, kind: ir.DataType) -> ir.Value | None:
        if not _is_constant(value):
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return None
        array = np.asarray(tensor.numpy())
        if self._most < float("inf"):
            finite = np.isfinite(array) & (np.abs(array) > self._most)
            if finite.any():
                self.clamped.append(str(value.name))
                array = np.where(finite, np.sign(array) * np.float32(self._most), array)
        made = ir.Value(name=self._fresh(value, kind), type=ir.TensorType(kind), shape=value.shape)
        made.const_value = ir.tensor(array.astype(kind.numpy()), dtype=kind, name=made.name)
        self.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        name = self._fresh(value, kind)
        node = ir.node("Cast", [value], attributes={"to": int(kind)}, name=name)
        made = node.outputs[0]
        made.name, made.shape, made.dtype = name, value.shape, kind
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        self.casts += 1
        return made

    def _captured(self) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
        """Values the bodies of If, Loop and Scan take from the graph; they stay as those bodies know them."""
        found: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in self.graph.all_nodes():
            if node.graph is self.graph:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == FULL and _belongs(value, self.graph):
                    found.setdefault(value, []).append((node, index))
        return found

    def _outputs(self, kinds: list[ir.DataType | None]) -> None:
        for index, (value, kind) in enumerate(zip([*self.graph.outputs], kinds, strict=True)):
            if kind != FULL or value.dtype == FULL:
                continue
            name = str(value.name)
            value.name = self._fresh(value, self.half)
            made = self._cast(value, FULL)
            made.name = name
            self.graph.outputs[index] = made

    def _fresh(self, value: ir.Value, kind: ir.DataType) -> str:
        base = name = f"{value.name}_{kind.name.lower()}"
        count = 1
        while name in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name)
        return name


@lru_cache
def _takes(operator: str, opset: int, kind: ir.DataType) -> bool:
    """Whether the operator of this opset takes the type wherever it takes float32: bf16 came late to many."""
    import onnx.defs

    formals = onnx.defs.get_schema(operator, opset, "").inputs
    return all(spelled(kind) in item.types for item in formals if spelled(FULL) in item.types)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None:
        return producer.op_type == "Constant" and producer.domain in STANDARD
    return value.is_initializer() and not value.is_graph_input()


def _is_inserted(node: ir.Node | None) -> bool:
    return node is not None and (node.name or "").startswith(INSERTED)


def _belongs(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return value.graph is graph if producer is None else producer.graph is graph


def _in_attention(node: ir.Node) -> bool:
    """Whether a softmax ends in a product, directly or behind a guard or a cast of its result."""
    ahead, seen = [*node.outputs[0].consumers()], 0
    while ahead and seen < 8:
        follower, seen = ahead.pop(), seen + 1
        if follower.op_type in ("MatMul", "Einsum"):
            return True
        if follower.op_type in ("Where", "Cast", "Dropout", "Identity", "Reshape", "IsNaN"):
            ahead += [user for value in follower.outputs for user in value.consumers()]
    return False


def _before_softmax(node: ir.Node) -> bool:
    """Whether the node adds what a reduction knows, as the log of sizes, to the logits of attention."""
    users = [user for value in node.outputs for user in value.consumers()]
    return any(user.op_type == "Softmax" and not _is_inserted(user) for user in users)
