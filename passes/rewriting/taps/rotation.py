"""Queries and keys in front of their rotary embedding, and what the product with weights that makes them reads."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.attention import scalar
from tokenrt.passes.graph.ancestry import between, readers
from tokenrt.passes.graph.quantization import decoded
from tokenrt.passes.graph.shapes import Shapes, describe

SAME = frozenset({"Cast", "Identity", "Mul"})
"""Operators behind the rotation that leave every entry at its place; of products those by a number."""


def weighed(value: ir.Value, shapes: Shapes) -> tuple[ir.Value, ir.Value]:
    """What the nearest product with weights above a value reads, [B,N,C], and its result. Raises: UnsupportedError."""
    todo, seen = [value], {value}
    for each in todo:
        node = each.producer()
        if node is None:
            continue
        data, weights = (*node.inputs, None)[:2]
        matrix = (
            weights is not None and decoded(weights).const_value is not None and len(shapes.of(weights)) == 2
        )
        if node.op_type in ("MatMul", "MatMulInteger", "Gemm") and data is not None and matrix:
            return decoded(data), node.outputs[0]
        fresh = [step for step in node.inputs if step is not None and step not in seen]
        seen.update(fresh)
        todo.extend(fresh)
    raise UnsupportedError(
        f"tensor {value.name!r} comes of no product with weights, and the method reads what one reads"
    )


def unrotated(value: ir.Value, shapes: Shapes) -> ir.Value:
    """Queries or keys [B,H,N,D] before rotary embedding: the last value that is read in several ways which meet again behind it.

    Raises: UnsupportedError where they are laid out anew behind the rotation, so that heads and tokens could not be told apart.
    """
    end, node = value, value.producer()
    while (
        node is not None and node.op_type in SAME and (node.op_type != "Mul" or scalar(node, 1) is not None)
    ):
        assert node.inputs[0] is not None
        end, node = node.inputs[0], node.inputs[0].producer()
    start = weighed(end, shapes)[1]
    inside = between(start, end)
    before, live = None, {start: readers(start) & inside}
    for each in [node for node in _graph(end) if node in inside]:
        if len(live) == 1:
            (only, reading), *_ = live.items()
            if len(reading) > 1 or each.op_type == "RotaryEmbedding":
                before = only
        for given in each.inputs:
            if given in live:
                live[given].discard(each)
                if not live[given]:
                    del live[given]
        live |= {made: found for made in each.outputs if (found := readers(made) & inside)}
    if before is None:
        return value
    if shapes.of(before) != shapes.of(value):
        raise UnsupportedError(
            f"tensor {before.name!r} {describe(shapes.of(before))} in front of the rotary embedding is laid out otherwise than "
            f"{value.name!r} {describe(shapes.of(value))} behind it, and the method reads queries and keys before the rotation"
        )
    return before


def _graph(value: ir.Value) -> ir.Graph | ir.Function:
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    return node.graph
