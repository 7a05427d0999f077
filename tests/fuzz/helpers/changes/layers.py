"""Projections, norms and activations in the forms that exporters and optimizers give them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from tests.fuzz.helpers.edit import FLOAT, Array, Edit, attribute, constant, dims, reader, scalar, single


def _linear(node: ir.Node) -> Array | None:
    """The weight [C,M] of a MatMul with a constant on its right, else None."""
    weight = constant(node.inputs[1])
    return weight if weight is not None and weight.ndim == 2 else None


def _biased(node: ir.Node) -> tuple[ir.Value, Array | None]:
    """The result of a MatMul with its bias [M] added where a single Add does that, and the bias."""
    product = node.outputs[0]
    if single(product) and reader(product).op_type == "Add":
        add = reader(product)
        bias = next((array for value in add.inputs if (array := constant(value)) is not None), None)
        if bias is not None and bias.shape == (_linear(node).shape[1],):
            return add.outputs[0], bias
    return product, None


def _products(edit: Edit) -> list[ir.Node]:
    return [node for node in edit.nodes("MatMul") if _linear(node) is not None and node.outputs[0].uses()]


def gemm_as_matmul(edit: Edit) -> bool:
    """Gemm as MatMul and Add."""
    found = []
    for node in edit.some(edit.nodes("Gemm")):
        weight = constant(node.inputs[1])
        if weight is None or attribute(node, "transA", 0):
            continue
        weight = (weight.T if attribute(node, "transB", 0) else weight) * attribute(node, "alpha", 1.0)
        made = edit.op(node, "MatMul", node.inputs[0], edit.const(weight))
        if len(node.inputs) > 2:
            scaled = edit.op(node, "Mul", node.inputs[2], edit.const(attribute(node, "beta", 1.0)))
            made = edit.op(node, "Add", made, scaled if attribute(node, "beta", 1.0) != 1 else node.inputs[2])
        edit.replace(node.outputs[0], made)
        found.append(node)
    return bool(found)


def matmul_as_gemm(edit: Edit) -> bool:
    """MatMul and its bias as Gemm: of [B,C] at once, of [B,N,C] over [B*N,C] and back."""
    found = []
    for node in edit.some(_products(edit)):
        weight, sizes = _linear(node), dims(node.inputs[0])
        if sizes is None or len(sizes) not in (2, 3) or None in sizes[1:]:
            continue
        result, bias = _biased(node)
        place = reader(node.outputs[0]) if bias is not None else node
        parts = [edit.const(weight if not (turned := edit.drawn.random() < 0.5) else weight.T)]
        parts += [edit.const(bias)] if bias is not None else []
        x = (
            node.inputs[0]
            if len(sizes) == 2
            else edit.op(place, "Reshape", node.inputs[0], edit.ints(-1, sizes[-1]))
        )
        made = edit.op(place, "Gemm", x, *parts, transB=int(turned))
        if len(sizes) == 3:
            made = edit.op(
                place,
                "Reshape",
                made,
                edit.ints(-1 if sizes[0] is None else sizes[0], sizes[1], weight.shape[1]),
            )
        edit.replace(result, made)
        found.append(node)
    return bool(found)


def turned_weights(edit: Edit) -> bool:
    """A weight as the Transpose of another."""
    found = _products(edit)
    for node in edit.some(found):
        node.replace_input_with(1, edit.op(node, "Transpose", edit.const(_linear(node).T), perm=[1, 0]))
    return bool(found)


def joined_projections(edit: Edit) -> bool:
    """Projections of one value as one product, and Split."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in _products(edit):
        groups.setdefault(node.inputs[0], []).append(node)
    found = [group for group in groups.values() if len(group) > 1]
    for group in edit.some(found):
        ends = [_biased(node) for node in group]
        weights = [_linear(node) for node in group]
        if any(bias is None for _, bias in ends) and any(bias is not None for _, bias in ends):
            continue
        first, rank = group[0], len(dims(group[0].inputs[0]) or ())
        made = edit.op(first, "MatMul", first.inputs[0], edit.const(np.concatenate(weights, 1)))
        if ends[0][1] is not None:
            made = edit.op(first, "Add", made, edit.const(np.concatenate([bias for _, bias in ends])))
        sizes = edit.ints(*(weight.shape[1] for weight in weights))
        parts = edit.many(
            first, len(group), "Split", made, sizes, axis=edit.drawn.choice([-1, rank - 1]) if rank else -1
        )
        for (result, _), part in zip(ends, parts, strict=True):
            edit.replace(result, part)
    return bool(found)


def separate_projections(edit: Edit) -> bool:
    """A product whose result is split into queries, keys and values as one product each."""
    found = []
    for node in edit.some(_products(edit)):
        result, bias = _biased(node)
        weight = _linear(node)
        for place, part, columns, heads in _parts(result, weight.shape[1]):
            made = edit.op(place, "MatMul", node.inputs[0], edit.const(weight[:, columns]))
            if bias is not None:
                made = edit.op(place, "Add", made, edit.const(bias[columns]))
            if heads:
                made = edit.op(place, "Reshape", made, edit.ints(0, 0, heads, -1))
                made = edit.op(place, "Transpose", made, perm=[0, 2, 1, 3])
            edit.replace(part, made)
            found.append(node)
    return bool(found)


def _parts(result: ir.Value, width: int) -> Iterator[tuple[ir.Node, ir.Value, slice, int]]:
    """(node, part, its columns, its heads or 0) of a joined projection: by Split or Slice, or turned to [3,B,H,N,D] first."""
    if not single(result):
        for node, _ in list(result.uses()):
            if node.op_type != "Slice" or len(node.inputs) < 4:
                continue
            first, last, axes = (constant(value) for value in node.inputs[1:4])
            if first is None or last is None or axes is None or axes.tolist() not in ([-1], [2]):
                continue
            yield node, node.outputs[0], slice(int(first[0]), min(int(last[0]), width)), 0
        return
    node = reader(result)
    if node.op_type == "Split" and attribute(node, "axis", 0) in (-1, 2):
        third = width // len(node.outputs)
        for number, part in enumerate(node.outputs):
            yield node, part, slice(number * third, (number + 1) * third), 0
    shape = dims(node.outputs[0])
    if (
        node.op_type != "Reshape"
        or shape is None
        or len(shape) != 5
        or shape[2] != 3
        or not single(node.outputs[0])
    ):
        return
    turn = reader(node.outputs[0])
    if turn.op_type != "Transpose" or list(attribute(turn, "perm")) != [2, 0, 3, 1, 4]:
        return
    for below, _ in list(turn.outputs[0].uses()):
        if (
            below.op_type == "Gather"
            and attribute(below, "axis", 0) == 0
            and scalar(below.inputs[1]) is not None
        ):
            number = int(scalar(below.inputs[1])) % 3
            yield below, below.outputs[0], slice(number * width // 3, (number + 1) * width // 3), shape[3]
        elif below.op_type == "Split" and len(below.outputs) == 3:
            for number, part in enumerate(below.outputs):
                if single(part) and reader(part).op_type == "Squeeze":
                    last = reader(part)
                    yield (
                        last,
                        last.outputs[0],
                        slice(number * width // 3, (number + 1) * width // 3),
                        shape[3],
                    )


def norm_as_primitives(edit: Edit) -> bool:
    found = edit.nodes("LayerNormalization")
    for node in edit.some(found):
        x, weight = node.inputs[:2]
        mean = edit.reduced(node, "ReduceMean", x, -1)
        away = edit.op(node, "Sub", x, mean)
        if edit.drawn.random() < 0.5:
            square = edit.op(node, "Pow", away, edit.const(2.0))
        else:
            square = edit.op(node, "Mul", away, away)
        around = edit.op(
            node,
            "Add",
            edit.reduced(node, "ReduceMean", square, -1),
            edit.const(attribute(node, "epsilon", 1e-5)),
        )
        root = edit.op(node, "Sqrt", around)
        if edit.drawn.random() < 0.5:
            made = edit.op(node, "Div", away, root)
        else:
            made = edit.op(node, "Mul", away, edit.op(node, "Reciprocal", root))
        made = edit.op(node, "Mul", made, weight)
        edit.replace(
            node.outputs[0], made if len(node.inputs) < 3 else edit.op(node, "Add", made, node.inputs[2])
        )
    return bool(found)


def norm_from_primitives(edit: Edit) -> bool:
    """A norm by Sub, Pow, Sqrt and Div as LayerNormalization."""
    if edit.opset < 17:
        return False
    found = []
    for node in edit.some(edit.nodes("Div")):
        away, root = (value.producer() for value in node.inputs)
        if (
            away is None
            or root is None
            or away.op_type != "Sub"
            or root.op_type != "Sqrt"
            or not single(node.outputs[0])
        ):
            continue
        around = root.inputs[0].producer()
        times = reader(node.outputs[0])
        epsilon = (
            next((n for v in around.inputs if (n := scalar(v)) is not None), None)
            if around is not None
            else None
        )
        weight = next((v for v in times.inputs if v is not node.outputs[0]), None)
        plus = reader(times.outputs[0]) if single(times.outputs[0]) else None
        bias = None if plus is None else next((v for v in plus.inputs if v is not times.outputs[0]), None)
        if (
            epsilon is None
            or times.op_type != "Mul"
            or plus is None
            or plus.op_type != "Add"
            or constant(bias) is None
        ):
            continue
        made = edit.op(plus, "LayerNormalization", away.inputs[0], weight, bias, axis=-1, epsilon=epsilon)
        edit.replace(plus.outputs[0], made)
        found.append(node)
    return bool(found)


def gelu_spelled(edit: Edit) -> bool:
    """x/2 (1 + erf(x / root 2)) in another order, as Gelu from opset 20 on, or as ONNX Runtime's Gelu."""
    found = []
    for node in edit.some(edit.nodes("Erf")):
        divided = node.inputs[0].producer()
        plus = reader(node.outputs[0]) if single(node.outputs[0]) else None
        if divided is None or divided.op_type not in ("Div", "Mul") or plus is None or plus.op_type != "Add":
            continue
        x, result = divided.inputs[0], plus.outputs[0]
        while single(result) and reader(result).op_type == "Mul":
            result = reader(result).outputs[0]
            if dims(result) != dims(x):
                return bool(found)
        place = result.producer()
        ways = [_half_first, _by_normal, _by_inverse] + ([_by_node] if edit.opset >= 20 else [])
        edit.replace(result, edit.drawn.choice(ways)(edit, place, x))
        found.append(node)
    return bool(found)


def _half_first(edit: Edit, place: ir.Node, x: ir.Value) -> ir.Value:
    erf = edit.op(place, "Erf", edit.op(place, "Mul", x, edit.const(math.sqrt(0.5))))
    half = edit.op(place, "Mul", edit.const(0.5), x)
    return edit.op(place, "Mul", edit.op(place, "Add", edit.const(1.0), erf), half)


def _by_normal(edit: Edit, place: ir.Node, x: ir.Value) -> ir.Value:
    erf = edit.op(place, "Erf", edit.op(place, "Div", x, edit.const(math.sqrt(2))))
    share = edit.op(place, "Add", edit.op(place, "Mul", erf, edit.const(0.5)), edit.const(0.5))
    return edit.op(place, "Mul", share, x)


def _by_inverse(edit: Edit, place: ir.Node, x: ir.Value) -> ir.Value:
    erf = edit.op(place, "Erf", edit.op(place, "Mul", x, edit.const(-math.sqrt(0.5))))
    left = edit.op(place, "Sub", edit.const(1.0), erf)
    return edit.op(place, "Div", edit.op(place, "Mul", x, left), edit.const(2.0))


def _by_node(edit: Edit, place: ir.Node, x: ir.Value) -> ir.Value:
    return edit.op(place, "Gelu", x)


def silu_spelled(edit: Edit) -> bool:
    """x sigmoid(x) as x / (1 + exp(-x))."""
    found = [node for node in edit.nodes("Sigmoid") if node.outputs[0].dtype == FLOAT]
    for node in edit.some(found):
        grown = edit.op(node, "Exp", edit.op(node, "Neg", node.inputs[0]))
        edit.replace(
            node.outputs[0], edit.op(node, "Reciprocal", edit.op(node, "Add", edit.const(1.0), grown))
        )
    return bool(found)


CHANGES = {
    change.__name__: change
    for change in (
        gemm_as_matmul,
        matmul_as_gemm,
        turned_weights,
        joined_projections,
        separate_projections,
        norm_as_primitives,
        norm_from_primitives,
        gelu_spelled,
        silu_spelled,
    )
}
