"""Operators that need every position of the grid: the tokens are restored before them."""

from __future__ import annotations

from tokenrt.passes.analysis.marks import Step

GRID = (
    "AveragePool Col2Im Conv ConvTranspose DeformConv DepthToSpace GatherElements GatherND GridSample GroupNormalization "
    "GRU InstanceNormalization LSTM LpPool MaxPool MaxRoiPool Pad RNN Resize ReverseSequence RoiAlign ScatterElements ScatterND "
    "SpaceToDepth Tile TopK Trilu Upsample CumSum"
).split()


def grid(step: Step) -> None:
    raise step.block("it works on neighbouring positions and needs all of them", "grid")


RULES = {("", name): grid for name in GRID}
