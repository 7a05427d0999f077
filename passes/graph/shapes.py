"""Static shapes with the batch as a number: one prime stands for it, so every dimension stays an integer.

A dimension that is a multiple of the prime counts images; products and quotients keep that visible, which
symbols lose as soon as a Reshape says -1. Nothing of that size is ever allocated: only shapes are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import ModelError, ShapeError
from tokenrt.passes.graph.model import skeleton

if TYPE_CHECKING:
    import onnx

BATCH = 1000003
"""The prime that stands for a dynamic batch; no model has a constant dimension that it divides."""

Dims = tuple[int, ...]
IntArray = np.ndarray[Any, np.dtype[Any]]

SHAPE_OPERATORS = frozenset(
    "Add Cast Concat ConstantOfShape Div Equal Expand Gather Greater Identity Less Max Min Mul Neg Range "
    "ReduceProd Reshape Slice Squeeze Sub Unsqueeze Where".split()
)
"""Operators shape arithmetic is written with; evaluated on small integer tensors only."""

LARGEST = 4096
"""Entries a value may have that shapes are computed with."""

INTEGERS = frozenset({ir.DataType.INT64.value, ir.DataType.INT32.value, ir.DataType.BOOL.value})


def one_picture(dims: Dims) -> Dims:
    """Dimensions with one picture where their number is free."""
    return tuple(size // BATCH if size % BATCH == 0 else size for size in dims)


def declared(dims: Dims) -> tuple[int | None, ...]:
    """Dimensions as a model declares them, None for a free number of pictures."""
    return tuple(None if size % BATCH == 0 else size for size in dims)


@dataclass(frozen=True)
class Shapes:
    """Dimensions and types of every value of a graph, by name."""

    dims: Mapping[str, Dims]
    types: Mapping[str, ir.DataType]
    dynamic_batch: bool

    def of(self, value: ir.Value) -> Dims:
        """Dims of `value`. Raises: ShapeError when inference left it open."""
        name = str(value.name)
        if name not in self.dims:
            producer = self._where_lost(value)
            if producer is not None and producer.domain not in ("", "ai.onnx"):
                raise ShapeError(
                    f"the shape of tensor {name!r} is not known: it comes of {producer.domain}.{producer.op_type} node "
                    f"{producer.name!r}, an operator from outside ONNX; export the model without it"
                )
            where = f" (output of {producer.op_type} node {producer.name!r})" if producer is not None else ""
            raise ShapeError(
                f"the shape of tensor {name!r}{where} cannot be proven static; fix the dynamic inputs with "
                "--shape NAME=1x3x224x224"
            )
        return self.dims[name]

    def _where_lost(self, value: ir.Value) -> ir.Node | None:
        """The first node on the way to `value` whose output has no known shape."""
        producer = value.producer()
        while producer is not None:
            earlier = next((v for v in producer.inputs if v is not None and not self.known(v)), None)
            if earlier is None or earlier.producer() is None:
                return producer
            producer = earlier.producer()
        return None

    def known(self, value: ir.Value) -> bool:
        return str(value.name) in self.dims


def infer(model: ir.Model, *, strict: bool = True) -> Shapes:
    """Infer the shape of every value with the batch set to `BATCH`. Raises: ModelError, ShapeError.

    strict: a node whose inputs do not fit is an error; without it, what it gives is not known.
    """
    import onnx

    proto, _ = skeleton(model)
    dynamic = False
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param or not dim.HasField("dim_value"):
                if axis:
                    raise ShapeError(f"axis {axis} of input {value.name!r} is dynamic; fix it with --shape")
                dim.dim_value = BATCH
                dynamic = True
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    evaluated: dict[str, IntArray] = {}
    dims, types = _infer(proto, strict)
    while missing := {name for node in proto.graph.node for name in node.output if name} - dims.keys():
        for name, array in _evaluate(proto, dims).items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            evaluated[name] = array
        before = len(missing)
        dims, types = _infer(proto, strict)
        if len({name for node in proto.graph.node for name in node.output if name} - dims.keys()) == before:
            break
    for name, array in evaluated.items():
        dims[name] = array.shape
        types[name] = ir.DataType.from_numpy(array.dtype)
    for name, initializer in model.graph.initializers.items():
        if initializer.const_value is not None:
            dims[str(name)] = tuple(int(size) for size in initializer.const_value.shape.numpy())
            types[str(name)] = initializer.const_value.dtype
    return Shapes(dims, types, dynamic)


def annotate(graph: ir.Graph, shapes: Shapes) -> None:
    """Give every value the element type that inference found."""
    for node in graph:
        for value in node.outputs:
            kind = shapes.types.get(str(value.name))
            if kind is not None and value.type is None:
                value.type = ir.TensorType(kind)


def _infer(proto: onnx.ModelProto, strict: bool) -> tuple[dict[str, Dims], dict[str, ir.DataType]]:
    import onnx.shape_inference

    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True)
    except Exception as cause:
        # The first of several: those behind it lack what that node should have given.
        first = str(cause).strip().splitlines()[0].removeprefix("[ShapeInferenceError] Inference error(s): ")
        raise ModelError(f"shape inference refuses the model: {first[:300]}") from cause
    dims: dict[str, Dims] = {}
    types: dict[str, ir.DataType] = {}
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        types[info.name] = ir.DataType(tensor.elem_type)
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            dims[info.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return dims, types


def _evaluate(proto: onnx.ModelProto, dims: Mapping[str, Dims]) -> dict[str, IntArray]:
    """Values of the small integer tensors that shapes are computed with; their nodes leave `proto`."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if len(tensor.dims) <= 1 and tensor.data_type in INTEGERS
    }
    found: dict[str, IntArray] = {}
    for node in [*proto.graph.node]:
        if node.op_type == "Shape" and node.input[0] in dims:
            shape = np.asarray(dims[node.input[0]], np.int64)
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            values: list[Any] = [shape[bounds.get("start", 0) : bounds.get("end", len(shape))]]
        elif node.op_type in SHAPE_OPERATORS and all(name in known for name in node.input if name):
            feeds = {name: known[name] for name in node.input if name}
            if node.op_type in ("ConstantOfShape", "Expand") and np.prod(feeds[node.input[-1]]) > LARGEST:
                continue  # Inference finds its shape, and nobody computes shapes with so much.
            values = list(ReferenceEvaluator(node).run(None, feeds))
        else:
            continue
        known.update(zip(node.output, values, strict=True))
        found.update(zip(node.output, values, strict=True))
        proto.graph.node.remove(node)
    return found


def target(dims: Dims) -> list[int]:
    """A Reshape target for these dims: the one that counts images becomes -1.

    Raises: ShapeError when two dimensions count images.
    """
    result = [-1 if size % BATCH == 0 and size else size for size in dims]
    if result.count(-1) > 1:
        raise ShapeError(f"two dimensions of {describe(dims)} depend on the batch; fix it with --shape")
    return result


def named(dims: Dims) -> list[int | str | None]:
    """The dims as a model writes them: "batch" for the images, nothing for a multiple of them."""
    return [size if not size or size % BATCH else "batch" if size == BATCH else None for size in dims]


def describe(dims: Dims) -> str:
    """The dims as text, e.g. [B,197,384] or [6B,197,64]."""
    parts = []
    for size in dims:
        images, rest = divmod(size, BATCH)
        parts.append(str(size) if rest or not images else ("B" if images == 1 else f"{images}B"))
    return f"[{','.join(parts)}]"
