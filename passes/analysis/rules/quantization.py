"""Explicit quantization: pairs of QuantizeLinear and DequantizeLinear, and products of integers.

One scale for the whole tensor, or one per channel, leaves the token axis alone. A scale that DynamicQuantizeLinear
computes of the whole tensor is computed of the tokens that are left, as it is in a model that never had the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenrt.passes.analysis.marks import Step
from tokenrt.passes.analysis.rules.linear import matmul
from tokenrt.passes.analysis.rules.spatial import grid
from tokenrt.passes.graph.shapes import Dims, describe

REMEDY = "quantize with one scale per tensor or per channel, or reduce the float model, then quantize"


def pair(step: Step) -> None:
    """QuantizeLinear and DequantizeLinear: marks keep their axis where no scale belongs to a token."""
    for index in range(1, len(step.node.inputs)):
        if not step.has(index):
            continue
        own = {*_own(step, index)}
        if step.marks[index] or any(mark.axis in own for mark in step.marks[0]):
            raise step.block(
                f"it has a {_what(index)} of its own for each token (input {index} is {describe(step.dims(index))}); {REMEDY}"
            )
    step.set(step.marks[0])


def _what(index: int) -> str:
    return "scale" if index == 1 else "zero point"


def _own(step: Step, index: int) -> Iterator[int]:
    """The axes of the data along which the scale or zero point `index` differs."""
    dims, rank = step.dims(index), step.rank(0)
    if len(dims) == 1 and dims[0] != 1:
        yield step.attribute("axis", 1) % rank
    elif len(dims) > 1:
        # Blocked: as many axes as the data, one entry a block along one of them and one an entry along the others.
        yield from (axis for axis, size in enumerate(dims) if size != 1)


def dynamic(step: Step) -> None:
    """DynamicQuantizeLinear: the codes count tokens, the scale and the zero point are single numbers."""
    step.set(step.marks[0])
    step.set((), 1)
    step.set((), 2)


def integers(step: Step) -> None:
    """MatMulInteger: a product whose zero points must not belong to tokens."""
    for index, data, axis in ((2, 0, -2), (3, 1, -1)):
        if not step.has(index):
            continue
        if step.marks[index] or (step.mark(data, axis) and _several(step.dims(index))):
            raise step.block(f"it has a zero point of its own for each token (input {index}); {REMEDY}")
    matmul(step)


def _several(dims: Dims) -> bool:
    return any(size != 1 for size in dims)


RULES = {
    ("", "QuantizeLinear"): pair,
    ("", "DequantizeLinear"): pair,
    ("", "DynamicQuantizeLinear"): dynamic,
    ("", "MatMulInteger"): integers,
    ("", "ConvInteger"): grid,
    ("", "QLinearConv"): grid,
}
