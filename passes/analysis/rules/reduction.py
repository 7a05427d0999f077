"""Sums, means, norms and softmaxes: along another axis they pass; along the token axis size decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from tokenrt.passes.analysis.marks import BiasKeys, Mark, Step, WeighPool, spans

POOLED = {"ReduceMean", "ReduceSum", "GlobalAveragePool"}
EXTREMES = {"ReduceMax", "ReduceMin", "GlobalMaxPool"}


def reduce(step: Step) -> None:
    """ReduceMean and ReduceSum over tokens are weighted by size; maxima need nothing; other reductions block."""
    rank = step.rank(0)
    axes = reduced_axes(step.node, rank)
    if axes is None:
        raise step.block("the axes it reduces are computed at run time")
    if not axes:
        step.set(step.marks[0])
        return
    keep = step.node.op_type.startswith("Global") or bool(step.attribute("keepdims", 1))
    marks: list[Mark] = []
    for span in spans(step.marks[0]):
        if not any(mark.axis in axes for mark in span):
            marks.extend(
                mark.at(mark.axis if keep else mark.axis - sum(axis < mark.axis for axis in axes))
                for mark in span
            )
            continue
        mark = span[0]
        if mark.inner != 1 or mark.outer != 1:
            raise step.block("it reduces a token axis that other axes are folded into")
        if mark.joint:
            raise step.block("it reduces tokens together with those of another stream", "grid")
        if not all(mark.axis in axes for mark in span):
            raise step.block("it reduces the rows or the columns of the token grid alone", "grid")
        if mark.stage and mark.weighed:
            if step.node.op_type != "ReduceSum":
                raise step.block("behind a softmax over tokens only their sum counts every original token")
        elif step.node.op_type in POOLED:
            images = 1 if mark.axis == 0 else 0
            if mark.stage and images in axes and step.dims(0)[images] != 1:
                raise step.block("it averages over tokens and pictures at once")
            if mark.stage:
                step.edit(WeighPool(step.node, span, rank))
        elif step.node.op_type not in EXTREMES:
            raise step.block("this reduction over tokens has no form weighted by size")
    step.set(marks)


def reduced_axes(node: ir.Node, rank: int) -> set[int] | None:
    """The axes a reduction reduces, none where it leaves its input as it is; None where only the run tells."""
    if node.op_type.startswith("Global"):
        return set(range(2, rank))
    listed: Iterable[int] = ()
    if "axes" in node.attributes:
        listed = node.attributes["axes"].as_ints()
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        if constant is None:
            return None
        listed = [int(axis) for axis in constant.numpy().reshape(-1)]
    axes = {axis % rank for axis in listed}
    idle = "noop_with_empty_axes" in node.attributes and node.attributes["noop_with_empty_axes"].as_int()
    return axes if axes or idle else set(range(rank))


def softmax(step: Step) -> None:
    """Over the token axis each key counts by its size (proportional attention)."""
    axis = step.attribute("axis", -1) % step.rank(0)
    mark = step.mark(0, axis)
    if mark and not mark.plain:
        raise step.block(
            "it runs over more or less than the tokens of one picture: windows, or rows of several", "grid"
        )
    if mark and mark.stage:
        if axis != step.rank(0) - 1:
            raise step.block("a softmax over tokens on an axis other than the last is not supported")
        if step.node.op_type != "Softmax" or mark.weighed:
            raise step.block("merged tokens would count as one in it")
        step.edit(BiasKeys(step.node, mark))
    step.set(replace(other, weighed=other.axis == axis) for other in step.marks[0])


def normalize(step: Step) -> None:
    """Statistics over the channels leave the token axis alone."""
    axis = step.attribute("axis", -1) % step.rank(0)
    if any(mark.axis >= axis for mark in step.marks[0]):
        raise step.block("it normalises over the token axis, so its statistics change with the tokens")
    for output in range(len(step.outputs)):
        step.set(step.marks[0], output)


def batch_normalization(step: Step) -> None:
    """Per channel (axis 1), with constant statistics."""
    if step.mark(0, 1):
        raise step.block("it keeps one statistic per token")
    step.set(step.marks[0])


def argmax(step: Step) -> None:
    axis = step.attribute("axis", 0) % step.rank(0)
    if step.mark(0, axis):
        raise step.block("it returns positions of tokens")
    keep = bool(step.attribute("keepdims", 1))
    step.set(mark if keep or mark.axis < axis else mark.at(mark.axis - 1) for mark in step.marks[0])


def l2_normalize(step: Step) -> None:
    if step.mark(0, step.attribute("axis", -1)):
        raise step.block("it normalises over the token axis")
    step.set(step.marks[0])


REDUCTIONS = (
    "GlobalAveragePool GlobalMaxPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
).split()

RULES = {("", name): reduce for name in REDUCTIONS} | {
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "LayerNormalization"): normalize,
    ("", "RMSNormalization"): normalize,
    ("", "SimplifiedLayerNormalization"): normalize,
    ("com.microsoft", "SimplifiedLayerNormalization"): normalize,
    ("", "LpNormalization"): l2_normalize,
    ("", "BatchNormalization"): batch_normalization,
    ("", "ArgMax"): argmax,
    ("", "ArgMin"): argmax,
}
