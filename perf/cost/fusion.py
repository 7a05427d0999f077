"""How many launches a runtime that fuses needs for part of a graph, counted on the graph: a model of TensorRT's fusion.

A product, a reduction over an axis, a softmax, a sort or a scatter ends a launch: what follows waits for all of it. What works
element by element, gathers or moves data goes with the launch before or after it. So launches are counted as the levels of such
operators, those on one level started together. TensorRT-RTX's builder counts the same for ToMe (8 engine layers a site) and top-k
(5), as lowered for GPUs; `tests/perf/cost/test_fusion.py` holds the model to docs/results/engine_layers.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

ENDS = frozenset(
    {
        "ArgMax", "ArgMin", "Attention", "Conv", "ConvTranspose", "CumSum", "Einsum", "Gemm", "GlobalAveragePool",
        "GlobalMaxPool", "GroupNormalization", "LayerNormalization", "LpNormalization", "LpPool", "MatMul", "MatMulInteger",
        "MultiHeadAttention", "RMSNormalization", "ScatterElements", "ScatterND", "Softmax", "TopK",
    }
)  # fmt: skip
"""Operators that end a launch, beside those whose name begins with Reduce."""


def ends(node: ir.Node) -> bool:
    """Whether what follows a node waits for all of it."""
    return node.op_type in ENDS or node.op_type.startswith("Reduce")


def computed(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on what the model is given, not only on its shape."""
    found = set(graph.inputs)
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def levels(nodes: Iterable[ir.Node], told: set[ir.Value], single: Callable[[ir.Node], bool] = ends) -> int:
    """Levels of the nodes that end a launch, among these, which come in order; told: what is computed in the graph."""
    reached: dict[ir.Value, int] = {}
    found = set()
    for node in nodes:
        if not any(value in told for value in node.outputs):
            continue
        level = max((reached.get(value, 0) for value in node.inputs if value is not None), default=0)
        if single(node):
            level += 1
            found.add(level)
        reached.update(dict.fromkeys(node.outputs, level))
    return len(found)
