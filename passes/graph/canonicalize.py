"""Bring a model to the one form the analyses read: constants folded, shapes resolved, fused nodes opened.

Changes nothing the model computes. A dynamic batch stays dynamic; every other axis must be fixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from tokenrt.errors import ModelError, ShapeError
from tokenrt.passes.graph import contrib, qoperator, quantization
from tokenrt.passes.graph.fold import fold
from tokenrt.passes.graph.model import attach, skeleton
from tokenrt.passes.graph.shapes import infer, named, target

if TYPE_CHECKING:
    import onnx

Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Canonicalize:
    """The canonical form of a model, as a copy.

    shape: axes of inputs by name; a name instead of a number keeps the batch dynamic, e.g. {"input_ids":
    ("B", 128)}.
    Raises: ShapeError for an axis other than the batch that is still dynamic, with the flag that fixes it.
    """

    shape: Mapping[str, Axes] = field(default_factory=dict)

    def spec(self) -> str:
        axes = ",".join(f"{name}={'x'.join(map(str, dims))}" for name, dims in self.shape.items())
        return f"canonicalize{{{'shape=' + axes if axes else ''}}}"

    def __call__(self, model: ir.Model) -> ir.Model:
        proto, weights = skeleton(model)
        _fix_inputs(proto, self.shape, frozenset(weights))
        opened = ir.from_proto(_inline(proto))
        qoperator.open_codes(opened)
        contrib.open_fused(opened)
        # onnxslim reads the value_float of a Constant as float64.
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
        weights |= quantization.hide(opened)
        result = ir.from_proto(_slim(_sound(ir.to_proto(opened))))
        attach(result, weights)
        ir.passes.Sequential(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedOpsetsPass(),
            common.TopologicalSortPass(),
        )(result)
        _resolve(result)
        result.metadata_props.update(model.metadata_props)
        return result


def parse_shapes(pairs: Iterable[str]) -> dict[str, Axes]:
    """Read `NAME=1x3x224x224` or `NAME=Bx128`. Raises: ShapeError on any other form."""
    shapes: dict[str, Axes] = {}
    for pair in pairs:
        name, separator, text = pair.rpartition("=")
        axes = tuple(int(part) if part.isdigit() else part for part in text.split("x"))
        named = [axis for axis in axes if isinstance(axis, str)]
        ok = (
            separator
            and name
            and all(re.fullmatch(r"[A-Za-z_]\w*", axis) for axis in named)
            and 0 not in axes
        )
        if not ok or any(isinstance(axis, str) for axis in axes[1:]):
            raise ShapeError(
                f"--shape {pair}: expected NAME=1x3x224x224 or NAME=Bx128 (only the batch, first, may be a name)"
            )
        shapes[name] = axes
    return shapes


def _resolve(model: ir.Model) -> None:
    """Fold shape arithmetic and give every Reshape a constant target; -1 stands where the batch is dynamic."""
    shapes = infer(model)
    for value in model.graph.outputs:
        if shapes.known(value):
            value.type = value.type or ir.TensorType(shapes.types[str(value.name)])
            value.shape = value.shape or ir.Shape(named(shapes.of(value)))
    fold(model, shapes)
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        if shapes.known(node.outputs[0]):
            goal = np.asarray(target(shapes.of(node.outputs[0])), np.int64)
            name = f"{node.outputs[0].name}_target"
            tensor = ir.tensor(goal, name=name)
            value = ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.INT64),
                shape=ir.Shape(goal.shape),
                const_value=tensor,
            )
            model.graph.register_initializer(value)
            node.replace_input_with(1, value)
    common.RemoveUnusedNodesPass()(model)
    quantization.mark(model.graph, shapes)


def _fix_inputs(proto: onnx.ModelProto, shape: Mapping[str, Axes], weights: frozenset[str]) -> None:
    constants = weights | {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    names = [value.name for value in inputs]
    for name in shape:
        if name not in names:
            raise ShapeError(
                f"--shape {name}=...: the model has no such input; its inputs: {', '.join(names) or 'none'}"
            )
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        wanted = shape.get(value.name)
        if wanted is not None and len(wanted) != len(dims):
            raise ShapeError(
                f"--shape {value.name}={'x'.join(map(str, wanted))}: the input has {len(dims)} axes: {_text(value)}"
            )
        for axis, dim in enumerate(dims):
            given = wanted[axis] if wanted is not None else None
            if isinstance(given, int) and dim.HasField("dim_value") and dim.dim_value != given:
                raise ShapeError(
                    f"--shape {value.name}: axis {axis} is fixed to {dim.dim_value} in the model, not {given}"
                )
            if isinstance(given, int):
                dim.dim_value = given
            elif isinstance(given, str) and not dim.HasField("dim_value"):
                dim.dim_param = given
            if axis and (dim.dim_param or not dim.HasField("dim_value")):
                example = "x".join(
                    ["B", *(str(d.dim_value) if d.HasField("dim_value") else "128" for d in dims[1:])]
                )
                raise ShapeError(
                    f"axis {axis} ({dim.dim_param or 'unnamed'}) of input {value.name!r} {_text(value)} is dynamic; "
                    f"token counts must be constants: fix it with e.g. --shape {value.name}={example}"
                )


def _text(value: onnx.ValueInfoProto) -> str:
    return (
        "["
        + ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim)
        + "]"
    )


def _inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    import onnx.inliner

    return onnx.inliner.inline_local_functions(proto, convert_version=True)


def _sound(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model, once its nodes have the inputs and attributes their operators ask for.

    Values without a type or shape, which runtimes take, pass: inference fills them in.
    """
    import onnx
    import onnx.checker

    stated = onnx.ModelProto()
    stated.CopyFrom(proto)
    del stated.graph.value_info[:]
    for value in stated.graph.output:
        tensor = value.type.tensor_type
        tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(stated)
    except onnx.checker.ValidationError as cause:
        raise ModelError(
            f"the model is not valid ONNX: {str(cause).strip().splitlines()[0][:300]}"
        ) from cause
    return proto


def _slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and resolve shape chains; fusions stay off, they would hide what the analyses look for."""
    import logging

    import onnxslim

    level = logging.getLogger("onnxslim").level
    try:
        slim = onnxslim.slim(proto, skip_optimizations=["graph_fusion", "weight_tying"])
    except Exception as cause:
        raise ModelError(
            f"constant folding refuses the model: {(str(cause) or type(cause).__name__).splitlines()[0][:300]}"
        ) from cause
    finally:
        logging.getLogger("onnxslim").setLevel(level)
    return slim if slim is not None else proto
