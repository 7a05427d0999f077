"""Operators that need every position of the grid: the tokens are restored before them."""

from __future__ import annotations

from tokenrt.passes.analysis.marks import Step

GRID = (
    "AveragePool Col2Im Conv ConvTranspose DeformConv DepthToSpace GatherElements GatherND GridSample GroupNormalization "
    "GRU InstanceNormalization LSTM LpPool MaxPool MaxRoiPool Pad RNN Resize ReverseSequence RoiAlign ScatterElements ScatterND "
    "SpaceToDepth Tile TopK Trilu Upsample CumSum"
).split()


APART = frozenset(
    "AveragePool Conv ConvTranspose GroupNormalization InstanceNormalization LpPool MaxPool".split()
)
"""Of those, the ones that never mix entries of axis 0."""


def grid(step: Step) -> None:
    marked = [mark for marks in step.marks for mark in marks]
    if step.node.op_type not in APART or step.marks[0] != tuple(marked) or any(m.axis for m in marked):
        raise step.block("it works on neighbouring positions and needs all of them", "grid")
    step.set(step.marks[0])


def conv(step: Step) -> None:
    """Of one position each (1 x 1) it is a product over the channels; any other needs the neighbours."""
    size = step.out_dims()[2:]
    kernel = step.dims(1)[2:]
    pointwise = set(kernel) == {1} and size == step.dims(0)[2:] and not any(step.attribute("pads", ()))
    if pointwise and all(mark.axis != 1 for mark in step.marks[0]) and not step.marks[1]:
        step.set(step.marks[0])
    else:
        grid(step)


RULES = {("", name): grid for name in GRID} | {("", "Conv"): conv}
