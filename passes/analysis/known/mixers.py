"""Mixers of tokens that are no plain attention: pooling, routing to a few regions, and adding."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.passes.analysis.known.looks import Scene

SELECTIONS = frozenset({"Gather", "GatherElements", "GatherND"})


def pooling(scene: Scene) -> Iterator[str]:
    """PoNet: one mean query for all tokens, the maximum of segments and of neighbours."""
    peaks = [node for node in scene.graph if node.op_type in ("ReduceMax", "MaxPool")]
    local = next((node for node in peaks if node.op_type == "MaxPool" and _stays(node, scene)), None)
    segments = next((node for node in peaks if node is not local and not _stays(node, scene)), None)
    for look in scene.looks:
        if look.queries == 1 < look.keys and local and segments and scene.pooled(look.query, look.key):
            yield (
                f"a mean query reads all {look.keys} tokens at {look.node.op_type} node {look.node.name!r}, beside the maximum "
                f"of neighbours ({local.op_type} node {local.name!r}) and of segments"
            )


def routing(scene: Scene) -> Iterator[str]:
    """BiFormer: regions choose regions by products of their means, and tokens attend to those chosen."""
    for chosen in (node for node in scene.graph if node.op_type == "TopK"):
        affinity = _producer(chosen.inputs[0])
        while affinity is not None and affinity.op_type in ("Mul", "Div"):
            affinity = _producer(affinity.inputs[0])
        if affinity is None or affinity.op_type != "MatMul":
            continue
        for look in scene.looks:
            way = scene.above(look.key)
            taken = any(node.op_type in SELECTIONS and chosen in _indices(node, scene) for node in way)
            means = [
                value for value in affinity.inputs if value is not None and scene.pooled(value, look.query)
            ]
            if taken and len(means) == 2:
                yield (
                    f"regions choose {scene.shapes.of(chosen.outputs[0])[-1]} regions each by their means at TopK node "
                    f"{chosen.name!r}, and tokens attend to these alone at {look.node.op_type} node {look.node.name!r}"
                )


def additive(scene: Scene) -> Iterator[str]:
    """CAS-ViT: queries and keys are gated each for itself and added; a convolution of the sum weighs the values."""
    for node in scene.graph:
        if node.op_type != "Mul":
            continue
        for value in node.inputs:
            weigh = _producer(value)
            added = _producer(weigh.inputs[0]) if weigh is not None and weigh.op_type == "Conv" else None
            if added is not None and added.op_type == "Add" and all(map(_gated, added.inputs)):
                yield (
                    f"gated queries and keys are added, not multiplied, and weigh the values at Mul node {node.name!r}: "
                    "no token attends to another"
                )


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _gated(value: ir.Value | None) -> bool:
    """Whether a value is multiplied with a sigmoid of what is made of it."""
    node = _producer(value)
    makers = [] if node is None or node.op_type != "Mul" else [_producer(each) for each in node.inputs]
    return any(maker is not None and maker.op_type == "Sigmoid" for maker in makers)


def _stays(node: ir.Node, scene: Scene) -> bool:
    """Whether the result has as many places as what was read."""
    data, out = node.inputs[0], node.outputs[0]
    known = data is not None and scene.shapes.known(data) and scene.shapes.known(out)
    return known and data is not None and scene.shapes.of(data) == scene.shapes.of(out)


def _indices(node: ir.Node, scene: Scene) -> frozenset[ir.Node]:
    value = node.inputs[1]
    return frozenset() if value is None else scene.above(value)
