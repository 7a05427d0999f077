"""The `Ops` protocol on a graph: every call appends a node, constants become initializers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import DOMAIN, LOWEST_OPSET, OPERATORS, VERSION
from tokenrt.passes.ops.contract import Array

_SIZES = {"ArgMax", "ArgMin", "Shape"}
_AXES_ARE_INPUTS = {"ReduceMax": 18, "ReduceMean": 18, "ReduceMin": 18, "ReduceProd": 18}
UINT8 = int(ir.DataType.UINT8)
_TRUTHS = {"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "Not", "Or"}


class GraphOps:
    """Appends nodes to a graph, before `before` or at its end, and remembers the tokenrt operators it used.

    Every value made has a known element type; names are plain identifiers that start with `prefix` and are
    unique in the graph. Casts to the type a value already has are left out. Operator sets from 13 on.

    Raises: UnsupportedError when `opset` is below 13.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None, opset: int, prefix: str) -> None:
        if opset < LOWEST_OPSET:
            raise UnsupportedError(
                f"token reduction needs opset {LOWEST_OPSET} or later, the model imports {opset}; "
                "convert it first (onnx.version_converter)"
            )
        self.graph, self.before, self.opset, self.prefix = graph, before, opset, prefix
        self.used: set[str] = set()
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._taken = _names(graph)
        self._numbers: dict[str, itertools.count[int]] = {}

    def __call__(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Append operator `name`; returns its value, or a tuple of values where it has several outputs."""
        values = [self.value(item) for item in inputs]
        if name == "Cast" and values[0].dtype == attributes["to"]:
            return values[0]
        if name == "CastLike":
            return self("Cast", values[0], to=int(_known(values[1])))
        if "axes" in attributes and self.opset >= _AXES_ARE_INPUTS.get(name, self.opset + 1):
            values.append(self.value(np.array(attributes.pop("axes"), np.int64)))
        outputs, types, domain = ["out"], [_result(name, values, attributes)], ""
        if name == "TopK":
            outputs, types = ["values", "indices"], [types[0], ir.DataType.INT64]
        if name in OPERATORS:
            operator = OPERATORS[name]
            if "type" in operator.attributes:
                attributes["type"] = int(_known(values[operator.inputs.index("tokens")]))
            attributes = operator.settle(attributes)
            outputs, domain = list(operator.outputs), DOMAIN
            types = [_declared(kind, operator.inputs, values) for kind in operator.types]
            self.used.add(name)
        return self._append(domain, name, values, attributes, outputs, types)

    def repeat(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """Append a copy of a node that reads `inputs`; returns its outputs."""
        outputs = [
            ir.Value(name=self._name(f"{node.op_type}_again"), type=value.type) for value in node.outputs
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            [*node.attributes.values()],
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=self._name(node.op_type),
        )
        self._insert(copy)
        return outputs

    def value(self, item: Any) -> ir.Value:
        """Return a value of the graph as it is; make anything else a constant: int64 or float32."""
        if isinstance(item, ir.Value):
            return item
        array = np.asarray(item)
        if not isinstance(item, np.ndarray | np.generic) and array.dtype.kind == "f":
            array = array.astype(np.float32)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self._constant(np.ascontiguousarray(array).reshape(array.shape))

    def constant(self, array: Any) -> ir.Value:
        """Return a constant as an initializer of the graph; equal constants share one."""
        return self.value(np.asarray(array))

    def add_functions(self, model: ir.Model) -> None:
        """Give `model` the functions of the operators used, and the import of their domain."""
        if not self.used:
            return
        model.graph.opset_imports[DOMAIN] = VERSION
        for name in sorted(self.used):
            function = ir.serde.deserialize_function(OPERATORS[name].function(self.opset))
            model.functions.setdefault(function.identifier(), function)

    def _constant(self, array: Array) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._name("const")
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def _append(
        self,
        domain: str,
        name: str,
        inputs: list[ir.Value],
        attributes: dict[str, Any],
        outputs: list[str],
        types: list[ir.DataType],
    ) -> Any:
        stem = self._name(name)
        results = [
            ir.Value(name=self._name(f"{name}_{output}"), type=ir.TensorType(kind))
            for output, kind in zip(outputs, types, strict=True)
        ]
        attrs = [_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, name, inputs, attrs, outputs=results, name=stem)
        self._insert(node)
        return results[0] if len(results) == 1 else tuple(results)

    def _insert(self, node: ir.Node) -> None:
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)

    def _name(self, stem: str) -> str:
        numbers = self._numbers.setdefault(stem, itertools.count())
        name = next(
            name
            for name in (f"{self.prefix}_{stem}_{number}" for number in numbers)
            if name not in self._taken
        )
        self._taken.add(name)
        return name


def _names(graph: ir.Graph) -> set[str]:
    values: Iterable[ir.Value] = itertools.chain(
        graph.inputs, graph.initializers.values(), *(node.outputs for node in graph)
    )
    return {value.name for value in values if value.name} | {node.name for node in graph if node.name}


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, list | tuple):
        whole = all(isinstance(item, int | np.integer) for item in value)
        return ir.AttrInt64s(name, list(value)) if whole else ir.AttrFloat32s(name, list(value))
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrInt64(name, int(value))


def _known(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise UnsupportedError(
            f"the element type of tensor {value.name!r} is unknown; run shape inference first"
        )
    return value.dtype


def _result(name: str, values: list[ir.Value], attributes: dict[str, Any]) -> ir.DataType:
    """Return the element type of the first output of a standard operator."""
    if name in _SIZES:
        return ir.DataType.INT64
    if name in _TRUTHS:
        return ir.DataType.BOOL
    if name == "Cast":
        return ir.DataType(attributes["to"])
    if name == "QuantizeLinear":
        return (
            _known(values[2]) if len(values) > 2 else ir.DataType(attributes.get("output_dtype", 0) or UINT8)
        )
    return _known(values[1] if name in ("DequantizeLinear", "Where") else values[0])


def _declared(kind: str, names: tuple[str, ...], values: list[ir.Value]) -> ir.DataType:
    if kind in names:
        return _known(values[names.index(kind)])
    return ir.DataType[{"float32": "FLOAT", "int64": "INT64"}[kind]]
