"""Bring a model to the one form the analyses read: constants folded, shapes resolved, fused nodes opened.

Changes nothing the model computes, nor the names, order and types of its inputs and outputs. A dynamic batch stays
dynamic; every other axis must be fixed. Two rules for what old files hold:

* An input with a default value (an initializer of the same name, as every weight is in files of IR version 3) is a
  constant: shapes and weights have to be known here. It is no input of the result, so that a runtime refuses another value
  for it instead of not using it. Who wants to give it anew in each run deletes its initializer.
* The result has IR version 8 or later, the first with functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from tokenrt.errors import InternalError, ModelError, ShapeError
from tokenrt.passes.graph import chance, contrib, qoperator, quantization
from tokenrt.passes.graph.branches import take_branches
from tokenrt.passes.graph.fold import fold
from tokenrt.passes.graph.model import attach, skeleton
from tokenrt.passes.graph.normal.normalize import normalize
from tokenrt.passes.graph.shapes import Shapes, infer, named, target
from tokenrt.passes.graph.unflatten import unflatten
from tokenrt.passes.ops.contract import DOMAIN

if TYPE_CHECKING:
    import onnx

Axes = tuple[int | str, ...]

FUNCTIONS = 8
"""The first IR version whose models hold functions."""


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
        proto.ir_version = max(proto.ir_version, FUNCTIONS)
        _settle_defaults(proto)
        _fix_inputs(proto, self.shape, frozenset(weights))
        opened = ir.from_proto(_inline(proto))
        _name_nodes(opened.graph)
        qoperator.open_codes(opened)
        contrib.open_fused(opened)
        # onnxslim reads the value_float of a Constant as float64.
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
        sound = _sound(ir.to_proto(opened))
        try:
            result = _canonical(opened, weights)
        except (ModelError, _FoldingError) as cause:
            raise _whose(cause, sound) from cause
        result.metadata_props.update(model.metadata_props)
        return result


def _name_nodes(graph: ir.Graph) -> None:
    """Give nodes without a name that of what they make: whatever is said of one later has to name it."""
    taken = {node.name for node in graph.all_nodes() if node.name}
    for node in graph.all_nodes():
        made = next((str(value.name) for value in node.outputs if value.name), "")
        if not node.name and made and made not in taken:
            node.name = made
            taken.add(made)


NOTHING = [-(2**63)]
"""What an empty list of integers is for a folder."""


class _FoldingError(Exception):
    """onnxslim cannot fold the model."""


def _canonical(opened: ir.Model, weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """The canonical form of a sound model. Raises: ModelError, ShapeError, _FoldingError."""
    while True:
        take_branches(opened)
        weights = weights | quantization.hide(opened)
        # A branch brings its weights along.
        proto, more = skeleton(opened)
        weights = weights | more
        result = ir.from_proto(chance.show(_slim(chance.hide(proto))))
        _keep_inputs(result, opened)
        attach(result, weights)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
        _drop_identities(result.graph)
        ir.passes.Sequential(
            common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.TopologicalSortPass()
        )(result)
        shapes = _resolve(result)
        if not take_branches(result):
            normalize(result, shapes)
            return result
        opened = result


def _whose(cause: Exception, given: onnx.ModelProto) -> Exception:
    """The error of a model that inference refuses as it was given, or our own where only its canonical form fails."""
    import onnx.shape_inference

    text = (str(cause) or type(cause).__name__).strip().splitlines()[0][:300]
    try:
        onnx.shape_inference.infer_shapes(given, strict_mode=True, data_prop=True)
    except Exception:
        return ModelError(text)
    return InternalError(f"the model is sound, but its canonical form is not: {text}")


def _settle_defaults(proto: onnx.ModelProto) -> None:
    """Inputs with a default value are constants."""
    defaults = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in defaults]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _keep_inputs(result: ir.Model, wanted: ir.Model) -> None:
    """Folding drops inputs that nothing reads; what calls the model still gives them."""
    left = {value.name: value for value in result.graph.inputs}
    kept = [
        left.pop(value.name)
        if value.name in left
        else ir.Value(name=value.name, type=value.type, shape=value.shape)
        for value in wanted.graph.inputs
    ]
    # What is left stands for weights.
    result.graph.inputs[:] = [*kept, *left.values()]


def _drop_identities(graph: ir.Graph) -> None:
    """Let readers of an Identity read what it reads. One stays where both ends are seen from outside under their own names."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        source, value = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if value.is_graph_output():
            maker = source.producer()
            if source.is_graph_output() or maker is None or maker.graph is not node.graph:
                continue
            place, owner = value, node.graph
            assert isinstance(owner, ir.Graph)
            source.shape, source.type = value.shape or source.shape, value.type or source.type
            value.replace_all_uses_with(source)
            owner.outputs[[*owner.outputs].index(place)] = source
            source.name, value.name = value.name, f"{value.name}_dropped"
        else:
            source.type = source.type or value.type
            source.shape = source.shape or value.shape
            value.replace_all_uses_with(source)
        if node.graph is not None:
            node.graph.remove(node, safe=True)


def parse_shapes(pairs: Iterable[str]) -> dict[str, Axes]:
    """Read `NAME=1x3x224x224` or `NAME=Bx128`; 0 for an axis that is empty, as a past. Raises: ShapeError on any other form."""
    shapes: dict[str, Axes] = {}
    for pair in pairs:
        name, separator, text = pair.rpartition("=")
        axes = tuple(int(part) if part.isdigit() else part for part in text.split("x"))
        named = [axis for axis in axes if isinstance(axis, str)]
        ok = (
            separator and name and all(re.fullmatch(r"[A-Za-z_]\w*", axis) for axis in named) and axes[0] != 0
        )
        if not ok or any(isinstance(axis, str) for axis in axes[1:]):
            raise ShapeError(
                f"--shape {pair}: expected NAME=1x3x224x224 or NAME=Bx128 (only the batch, first, may be a name)"
            )
        shapes[name] = axes
    return shapes


def _resolve(model: ir.Model) -> Shapes:
    """Fold shape arithmetic and give every Reshape a constant target; -1 stands where the batch is dynamic.

    Returns the shapes of what is left.
    """
    shapes = infer(model)
    for value in model.graph.outputs:
        if shapes.known(value):
            value.type = value.type or ir.TensorType(shapes.types[str(value.name)])
            value.shape = value.shape or ir.Shape(named(shapes.of(value)))
    fold(model, shapes)
    unflatten(model.graph, shapes)
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
    return shapes


def _fix_inputs(proto: onnx.ModelProto, shape: Mapping[str, Axes], weights: frozenset[str]) -> None:
    constants = weights | {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    names = [value.name for value in inputs]
    for name in shape:
        if name not in names:
            raise ShapeError(
                f"--shape {name}=...: the model has no such input; its inputs: {', '.join(names) or 'none'}"
            )
    shared = _sizes(inputs, shape)
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        wanted = shape.get(value.name)
        if wanted is not None and len(wanted) != len(dims):
            raise ShapeError(
                f"--shape {value.name}={'x'.join(map(str, wanted))}: the input has {len(dims)} axes: {_text(value)}"
            )
        for axis, dim in enumerate(dims):
            given = wanted[axis] if wanted is not None else shared.get(dim.dim_param)
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


def _sizes(inputs: Sequence[onnx.ValueInfoProto], shape: Mapping[str, Axes]) -> dict[str, int]:
    """The sizes given for named axes: an axis of the same name in another input, as of ids and their mask, has the same."""
    return {
        dim.dim_param: given
        for value in inputs
        for dim, given in zip(value.type.tensor_type.shape.dim, shape.get(value.name, ()), strict=False)
        if dim.dim_param and isinstance(given, int)
    }


def _text(value: onnx.ValueInfoProto) -> str:
    return (
        "["
        + ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim)
        + "]"
    )


def _inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions, but for the operators of ours that a reduced model has: they stay what runtimes know."""
    if not proto.functions:
        return proto
    import onnx.inliner

    ours = [(function.domain, function.name) for function in proto.functions if function.domain == DOMAIN]
    if not ours:
        return onnx.inliner.inline_local_functions(proto, convert_version=True)
    return onnx.inliner.inline_selected_functions(proto, ours, exclude=True)


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
        slim: onnx.ModelProto | None = onnxslim.slim(
            _lists(proto, [], NOTHING), skip_optimizations=["graph_fusion", "weight_tying"]
        )
    except Exception as cause:
        text = (str(cause) or type(cause).__name__).splitlines()[0][:300]
        raise _FoldingError(f"constant folding refuses the model: {text}") from cause
    finally:
        logging.getLogger("onnxslim").setLevel(level)
    if slim is None:
        return proto
    # It writes the constants in the bodies of functions anew, in another type.
    del slim.functions[:]
    slim.functions.extend(proto.functions)
    return _lists(slim, NOTHING, [])


def _lists(proto: onnx.ModelProto, before: list[int], behind: list[int]) -> onnx.ModelProto:
    """The model with the integer lists of its nodes that are `before` as `behind`; itself where there are none.

    onnxslim cannot write an empty list, whose type it asks the first entry.
    """
    import onnx

    def found(model: onnx.ModelProto) -> list[onnx.AttributeProto]:
        every = (attribute for node in model.graph.node for attribute in node.attribute)
        return [each for each in every if each.type == each.INTS and list(each.ints) == before]

    if not found(proto):
        return proto
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for attribute in found(made):
        attribute.ints[:] = behind
    return made
