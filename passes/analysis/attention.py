"""Find attention by its structure: a softmax between two products, or an Attention node; never by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.normal.chain import between_activations
from tokenrt.passes.graph.quantization import CODERS, PAIR, decoded, rescales
from tokenrt.passes.graph.shapes import BATCH, Shapes

NEUTRAL = frozenset({"Cast", "Dropout", "Identity"}) | PAIR
"""Operators that give what they take, but for its type and its rounding."""

POINTWISE = frozenset("Add Clip Div Max Mul Sub Where".split()) | NEUTRAL
"""Operators between the scores and the softmax: scaling, masks, bias."""

PASSING = frozenset({"Where", "Mul"}) | NEUTRAL | CODERS
"""Operators between the softmax and the product with the values: guards against empty rows, gates."""

PRODUCTS = frozenset({"MatMul", "MatMulInteger"})

HIDDEN = 1e2
"""A bias beyond this hides: the weight it leaves, exp(-100), is nothing in float32."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Core:
    """One attention: softmax(scale * query key^T + masks) value.

    query, value [B,H,N,D] or [B*H,N,D]; key the same, or [..,D,N] where `key_transposed`; 3-D inputs of an
    Attention node are [B,N,H*D]. masks: (node, input) pairs that bring an additive mask, a bias or a
    condition. key_heads: heads of keys and values, fewer than H where groups of queries share one. unread: the
    node that makes of the scores more than that formula says, so that they are not recomputed beside it. causal: beside
    its masks every query sees the keys up to its own place only.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    output: ir.Value
    key_transposed: bool
    heads: int
    width: int
    scale: float
    masks: tuple[tuple[ir.Node, int], ...]
    queries: int
    keys: int
    key_heads: int
    unread: ir.Node | None
    causal: bool = False

    @property
    def fused(self) -> bool:
        return self.node.op_type == "Attention"


def cores(graph: ir.Graph, shapes: Shapes) -> list[Core]:
    """Every attention of the graph, in graph order."""
    first = shapes.of(graph.inputs[0]) if graph.inputs else ()
    images = BATCH if shapes.dynamic_batch else first[0] if first else 1
    found = (
        _from_softmax(node, shapes, images) if node.op_type == "Softmax" else _from_node(node, shapes)
        for node in graph
    )
    return [core for core in found if core is not None]


def _from_softmax(node: ir.Node, shapes: Shapes, images: int) -> Core | None:
    scores = node.inputs[0]
    if scores is None or not shapes.known(scores):
        return None
    dims = shapes.of(scores)
    axis = node.attributes.get("axis")
    if len(dims) not in (3, 4) or (axis is not None and axis.value not in (-1, len(dims) - 1)):
        return None
    chain: list[tuple[ir.Node, int]] = []
    product = scores.producer()
    while product is not None and product.op_type in POINTWISE:
        inside = [
            i
            for i, value in enumerate(product.inputs)
            if value is not None and _leads_to_product(value, dims, shapes)
        ]
        if not inside:
            return None
        chain.append((product, inside[-1]))
        step = product.inputs[inside[-1]]
        product = step.producer() if step is not None else None
    if product is None or product.op_type not in PRODUCTS:
        return None
    coded = product.op_type == "MatMulInteger"
    query, key = (_floats(value, coded) for value in product.inputs[:2])
    if query is None or key is None or query.const_value is not None or key.const_value is not None:
        return None
    weighted = next(_weighted(node.outputs[0], dims, shapes), None)
    value = None if weighted is None else _floats(weighted.inputs[1], weighted.op_type == "MatMulInteger")
    counted = [step for step in chain if rescales(*step, product)]
    if weighted is None or value is None or coded != bool(counted):
        return None
    chain = [step for step in chain if step not in counted]
    scale, masks = 1.0, list[tuple[ir.Node, int]]()
    for step_node, index in chain:
        number = scalar(step_node, 1 - index) if step_node.op_type in ("Mul", "Div") else None
        if number is not None and step_node.op_type == "Mul":
            scale *= number
        elif number is not None and index == 0:
            scale /= number
        elif step_node.op_type not in NEUTRAL:
            masks.extend((step_node, other) for other in range(len(step_node.inputs)) if other != index)
    batch = shapes.of(query)
    heads = batch[1] if len(batch) == 4 else batch[0] // images if batch[0] % images == 0 else 1
    return Core(
        node,
        query,
        key,
        value,
        weighted.outputs[0],
        True,
        heads,
        batch[-1],
        scale,
        tuple(masks),
        dims[-2],
        dims[-1],
        heads,
        _unread(chain),
    )


def _unread(chain: Sequence[tuple[ir.Node, int]]) -> ir.Node | None:
    """The first node from the product to the softmax that is no scale, or no bias or mask added behind the scales."""
    added = False
    for node, index in reversed(chain):
        kind = node.op_type
        if kind in ("Add", "Sum") or (kind == "Sub" and index == 0) or _shows(node, index):
            added = True
        elif kind in ("Mul", "Div"):
            if added or (kind == "Div" and index) or scalar(node, 1 - index) is None:
                return node
        elif kind not in NEUTRAL and not (kind == "Max" and hides(node, 1 - index)):
            return node
    return None


def _floats(value: ir.Value | None, coded: bool) -> ir.Value | None:
    """What a product multiplies; of a product of codes, the floats they were made of, or None where the graph has none."""
    if value is None or not coded:
        return value
    floats = decoded(value)
    return None if floats is value else floats


def _shows(node: ir.Node, index: int) -> bool:
    """Whether a Where passes the scores, its input `index`, and hides the others."""
    return node.op_type == "Where" and index > 0 and hides(node, 3 - index)


def hides(node: ir.Node, index: int) -> bool:
    """Whether input `index` is a constant that hides every score it stands for."""
    value = node.inputs[index]
    return (
        value is not None and value.const_value is not None and bool((value.const_value.numpy() < -1).all())
    )


def _from_node(node: ir.Node, shapes: Shapes) -> Core | None:
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return None
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None or not (shapes.known(query) and shapes.known(key)):
        return None
    dims, key_dims = shapes.of(query), shapes.of(key)
    heads = dims[1] if len(dims) == 4 else int(node.attributes["q_num_heads"].value)
    width = dims[-1] if len(dims) == 4 else dims[-1] // heads
    given = node.attributes.get("scale")
    scale = float(given.value) if given is not None else 1 / float(np.sqrt(width))
    masks = ((node, 3),) if len(node.inputs) > 3 and node.inputs[3] is not None else ()
    key_heads = key_dims[1] if len(key_dims) == 4 else int(node.attributes["kv_num_heads"].value)
    capped = node if "softcap" in node.attributes and node.attributes["softcap"].value else None
    return Core(
        node,
        query,
        key,
        value,
        node.outputs[0],
        False,
        heads,
        width,
        scale,
        masks,
        dims[-2],
        key_dims[-2],
        key_heads,
        capped,
        bool("is_causal" in node.attributes and node.attributes["is_causal"].value),
    )


def _leads_to_product(value: ir.Value, dims: tuple[int, ...], shapes: Shapes) -> bool:
    """Whether a chain of pointwise operators leads from a product of two computed sides and this shape to `value`."""
    if not shapes.known(value) or shapes.of(value) != dims:
        return False
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type in PRODUCTS:
        return between_activations(producer)
    return producer.op_type in POINTWISE and any(
        step is not None and _leads_to_product(step, dims, shapes) for step in producer.inputs
    )


def _weighted(value: ir.Value, dims: tuple[int, ...], shapes: Shapes) -> Iterator[ir.Node]:
    """Products that take the softmax, or what guards make of it, as their left side."""
    for node, index in value.uses():
        if node.op_type in PRODUCTS and index == 0:
            yield node
        elif node.op_type in PASSING and shapes.known(node.outputs[0]) and shapes.of(node.outputs[0]) == dims:
            yield from _weighted(node.outputs[0], dims, shapes)


def scalar(node: ir.Node, index: int) -> float | None:
    """The number that input `index` holds for every entry, or None."""
    value = node.inputs[index]
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))
