"""Rows that are taken by number, however an exporter writes it, as one Gather."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder


def open_gather(build: Builder, node: ir.Node) -> bool:
    """GatherND of whole entries of the first axis, by constant numbers [..,1], as a Gather; whether it was."""
    data, index = node.inputs[:2]
    if data is None or index is None or index.const_value is None or not build.known(node.outputs[0]):
        return False
    numbers = index.const_value.numpy()
    if numbers.ndim < 2 or numbers.shape[-1] != 1 or node.attributes.get_int("batch_dims", 0):
        return False
    taken = build.make(
        build.dims(node.outputs[0]), "Gather", data, build.constant(numbers[..., 0], index), axis=0
    )
    build.replace(node.outputs[0], taken)
    return True
