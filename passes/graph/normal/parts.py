"""A value that is cut into parts which are joined again, in order and all of them: the value itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder

Span = tuple[int, int]


def open_concat(build: Builder, node: ir.Node) -> bool:
    """Let what was cut stand for the parts joined; whether it did."""
    whole = _cut(node)
    if whole is None or not build.known(whole):
        return False
    rank = len(build.dims(whole))
    axis = node.attributes["axis"].value % rank
    length, place = build.dims(whole)[axis], 0
    for value in node.inputs:
        span = _span(build, value, axis, rank)
        if span is None or span[0] != place:
            return False
        place = span[1]
    if place != length:
        return False
    build.replace(node.outputs[0], whole)
    return True


def _cut(node: ir.Node) -> ir.Value | None:
    """The one value that every input is a part of."""
    makers = [value.producer() if value is not None else None for value in node.inputs]
    sources = {
        maker.inputs[0] if maker is not None and maker.op_type in ("Slice", "Split") else None
        for maker in makers
    }
    return next(iter(sources)) if len(sources) == 1 and len(makers) > 1 else None


def _span(build: Builder, value: ir.Value | None, axis: int, rank: int) -> Span | None:
    """Which places of the axis a part holds, first and behind the last; None where it is cut otherwise."""
    maker = value.producer() if value is not None else None
    if value is None or maker is None or not all(map(build.known, (value, maker.inputs[0]))):
        return None
    if maker.op_type == "Split":
        if maker.attributes.get_int("axis", 0) % rank != axis or not all(map(build.known, maker.outputs)):
            return None
        before = maker.outputs[: maker.outputs.index(value)]
        first = sum(build.dims(other)[axis] for other in before)
        return first, first + build.dims(value)[axis]
    given = [_numbers(data) for data in maker.inputs[1:]]
    starts, _, axes, steps = (*given, None, None)[:4]
    if starts is None or len(starts) != 1 or [size % rank for size in axes or (0,)] != [axis]:
        return None
    whole = maker.inputs[0]
    assert whole is not None
    first = starts[0] + (build.dims(whole)[axis] if starts[0] < 0 else 0)
    return (first, first + build.dims(value)[axis]) if (steps or (1,)) == (1,) else None


def _numbers(value: ir.Value | None) -> Sequence[int] | None:
    if value is None or value.const_value is None:
        return None
    return tuple(int(number) for number in value.const_value.numpy().reshape(-1))
