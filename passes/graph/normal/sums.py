"""Residual additions in the one form: Sum as Adds, x - f(x) as x + (-f(x)), constants on the branch's side."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.normal.builder import Builder
from tokenrt.passes.graph.normal.chain import climb


def open_sum(build: Builder, node: ir.Node) -> bool:
    """Sum of n as n - 1 Adds; the last keeps the node's name."""
    terms = [value for value in node.inputs if value is not None]
    if not all(build.known(value) for value in (*terms, *node.outputs)):
        return False
    total = terms[0]
    for place, term in enumerate(terms[1:], 2):
        wide = _wider(build, total, term)
        if wide is None:
            return False
        total = build.make(wide, "Add", total, term)
        maker = total.producer()
        if place == len(terms) and maker is not None:
            maker.name = node.name or maker.name
            maker.metadata_props.update(node.metadata_props)
    build.replace(node.outputs[0], total)
    build.graph.remove(node, safe=True)
    return True


def _wider(build: Builder, one: ir.Value, two: ir.Value) -> tuple[int, ...] | None:
    """What the two broadcast to."""
    first, second = build.dims(one), build.dims(two)
    rank = max(len(first), len(second))
    pairs = zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second, strict=True)
    return tuple(max(pair) for pair in pairs)


def open_sub(build: Builder, node: ir.Node) -> bool:
    """Write x - f(x), of one shape, as x + (-f(x)), and f(x) - (-x) as f(x) + x: residual additions, with the same bits."""
    stream, branch = node.inputs
    if stream is None or branch is None or stream.const_value is not None or branch.const_value is not None:
        return False
    if not (build.known(stream) and build.known(branch)) or build.dims(stream) != build.dims(branch):
        return False
    maker = branch.producer()
    plain = maker.inputs[0] if maker is not None and maker.op_type == "Neg" else None
    if len(build.dims(stream)) < 2 or (plain is None and stream not in ancestors((branch,))):
        return False
    plain = plain if plain is not None else build.make(build.dims(branch), "Neg", branch)
    total = build.make(build.dims(stream), "Add", stream, plain)
    added = total.producer()
    assert added is not None
    added.name = node.name or added.name
    added.metadata_props.update(node.metadata_props)
    build.replace(node.outputs[0], total)
    build.graph.remove(node, safe=True)
    return True


def open_add(build: Builder, node: ir.Node) -> bool:
    """A split bias goes with its branch: (x + constant) + f(x), or (x + f(x)) + constant, as x + (f(x) + constant)."""
    return _biases_of_scores(build, node) or _bias_before(build, node) or _bias_behind(build, node)


def _biases_of_scores(build: Builder, node: ir.Node) -> bool:
    """(q k + b) + c as q k + (b + c) for constants: a merged key needs the mean over their sum, not over each alone."""
    for place in (0, 1):
        outer, last = node.inputs[place], node.inputs[1 - place]
        inner = outer.producer() if outer is not None else None
        if (
            outer is None
            or last is None
            or last.const_value is None
            or inner is None
            or inner.op_type != "Add"
        ):
            continue
        if len(outer.uses()) != 1 or outer.is_graph_output() or not build.known(outer):
            continue
        for side in (0, 1):
            scores, first = inner.inputs[side], inner.inputs[1 - side]
            if first is None or first.const_value is None or climb(scores, build.shapes()) is None:
                continue
            arrays = [value.const_value.numpy() for value in (first, last) if value.const_value is not None]
            keys = build.dims(outer)[-1]
            if any(array.ndim < 2 or array.shape[-1] != keys for array in arrays):
                continue
            node.replace_input_with(place, scores)
            node.replace_input_with(1 - place, build.constant(arrays[0] + arrays[1], last))
            return True
    return False


def _bias_behind(build: Builder, node: ir.Node) -> bool:
    """(x + f(x)) + constant, a number for each channel, where the sum is read here only."""
    for place in (0, 1):
        outer, constant = node.inputs[place], node.inputs[1 - place]
        inner = outer.producer() if outer is not None else None
        if outer is None or constant is None or constant.const_value is None or inner is None:
            continue
        if (
            inner.op_type != "Add"
            or len(outer.uses()) != 1
            or outer.is_graph_output()
            or not build.known(outer)
        ):
            continue
        dims, numbers = build.dims(outer), build.dims(constant)
        if not numbers or numbers[-1] != dims[-1] or constant.const_value.size != dims[-1]:
            continue
        for side in (0, 1):
            stream, branch = inner.inputs[side], inner.inputs[1 - side]
            values = [value for value in (stream, branch) if value is not None and value.const_value is None]
            if len(values) < 2 or any(not build.known(v) or build.dims(v) != dims for v in values):
                continue
            if values[0] in ancestors((values[1],)):
                node.replace_input_with(1 - place, build.make(dims, "Add", values[1], constant))
                node.replace_input_with(place, values[0])
                return True
    return False


def _bias_before(build: Builder, node: ir.Node) -> bool:
    """(x + constant) + f(x), where x + constant is read here only."""
    for place in (0, 1):
        outer, branch = node.inputs[place], node.inputs[1 - place]
        inner = outer.producer() if outer is not None else None
        if outer is None or branch is None or inner is None or inner.op_type != "Add":
            continue
        if len(outer.uses()) != 1 or outer.is_graph_output() or branch.const_value is not None:
            continue
        for side in (0, 1):
            stream, constant = inner.inputs[side], inner.inputs[1 - side]
            if stream is None or constant is None or constant.const_value is None:
                continue
            same = all(build.known(value) for value in (stream, branch)) and build.dims(stream) == build.dims(
                branch
            )
            if same and _fits(build, constant, branch) and stream in ancestors((branch,)):
                node.replace_input_with(1 - place, build.make(build.dims(branch), "Add", branch, constant))
                node.replace_input_with(place, stream)
                return True
    return False


def _fits(build: Builder, constant: ir.Value, value: ir.Value) -> bool:
    return _wider(build, constant, value) == build.dims(value)
