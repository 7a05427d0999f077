"""Softmaxes written otherwise: exp(log_softmax(x)) is softmax(x), and so is exp(x - m) / sum(exp(x - m))."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder


def open_exp(build: Builder, node: ir.Node) -> bool:
    """Exp behind a LogSoftmax as one Softmax; whoever else reads the logarithms keeps them."""
    logarithms = node.inputs[0].producer() if node.inputs[0] is not None else None
    if logarithms is None or logarithms.op_type != "LogSoftmax" or logarithms.inputs[0] is None:
        return False
    scores = logarithms.inputs[0]
    if not build.known(scores):
        return False
    given = logarithms.attributes.get("axis")
    _put(build, node, scores, given.value if given is not None else -1, logarithms)
    return True


def open_quotient(build: Builder, node: ir.Node) -> bool:
    """exp(x) / sum(exp(x)), or times the sum's reciprocal, as one Softmax.

    A maximum that is subtracted from x first changes nothing, if it is one number for all that is summed.
    """
    for place in (0, 1) if node.op_type == "Mul" else (0,):
        power, total = node.inputs[place], _maker(node.inputs[1 - place])
        if node.op_type == "Mul":
            total = _maker(total.inputs[0]) if total is not None and total.op_type == "Reciprocal" else None
        exponent = _maker(power)
        if exponent is None or exponent.op_type != "Exp" or total is None or total.op_type != "ReduceSum":
            continue
        if total.inputs[0] is not power or not build.known(exponent.inputs[0]):
            continue
        scores = exponent.inputs[0]
        assert scores is not None
        rank = len(build.dims(scores))
        axes = _summed(total, rank)
        if len(axes) == 1:
            _put(build, node, _without_shift(scores, axes, rank), axes[0], exponent)
            return True
    return False


def _put(build: Builder, node: ir.Node, scores: ir.Value, axis: int, origin: ir.Node) -> None:
    """A Softmax in the place of a node, under the name of what made the weights."""
    made = build.make(build.dims(scores), "Softmax", scores, axis=axis)
    maker = made.producer()
    assert maker is not None
    maker.name = origin.name or maker.name
    maker.metadata_props.update(origin.metadata_props)
    build.replace(node.outputs[0], made)
    build.graph.remove(node, safe=True)


def _without_shift(scores: ir.Value, axes: list[int], rank: int) -> ir.Value:
    """The x of x - max(x), where the maximum is taken at least along `axes`."""
    node = _maker(scores)
    if node is None or node.op_type != "Sub":
        return scores
    plain, most = node.inputs[0], _maker(node.inputs[1])
    if plain is None or most is None or most.op_type != "ReduceMax" or most.inputs[0] is not plain:
        return scores
    return plain if set(axes) <= set(_summed(most, rank)) else scores


def _summed(node: ir.Node, rank: int) -> list[int]:
    """The axes that a reduction takes together, none where it does not keep them or only the run tells them."""
    keep = node.attributes.get("keepdims")
    if keep is not None and not keep.as_int():
        return []
    if "axes" in node.attributes:
        listed = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        listed = [] if constant is None else [int(axis) for axis in constant.numpy().reshape(-1)]
    else:
        listed = list(range(rank))
    return [axis % rank for axis in listed]


def _maker(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
