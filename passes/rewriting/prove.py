"""Proof of a rewritten model, by what it is and not by how it was made.

Valid ONNX; every shape static; the inputs and outputs of the original, by name, order, type and shape; every count as
planned; the batch as free as before; and the axis that lost tokens is the one that attention runs over.

The last cannot be fooled by axes of one length. Before the rewrite, the rules alone must lead from the stream's token axis to
the axis of each softmax; behind it, that axis has the planned count in the shapes that inference finds. Tokens taken from
another axis (a batch, frames, channels of the same length) leave the softmax with as many as it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from tokenrt.errors import ProofError, TokenrtError, UnsupportedError
from tokenrt.passes.analysis.marks import Marks
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.functions import describe as told
from tokenrt.passes.graph.interface import Interface, Port
from tokenrt.passes.graph.model import skeleton
from tokenrt.passes.graph.shapes import Shapes, describe, infer
from tokenrt.passes.ops import DOMAIN
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.route import Route

KNOWN_DOMAINS = frozenset({"", "ai.onnx", DOMAIN})
Stream = tuple[str, int, int]
"""A tensor, its token axis, and the tokens it must have there."""


@dataclass(frozen=True)
class Attended:
    """The axis an attention runs over, as its node reads it: input, axis, and the tokens it must have. fault: or why not."""

    node: ir.Node
    index: int
    axis: int
    count: int
    fault: str = ""


def attended(structure: Structure, path: Route, plan: Plan, shapes: Shapes) -> list[Attended]:
    """The softmax axis of every block, and the count that the rules and the plan say it has."""
    counts, found = plan.counts(), []
    for block in structure.blocks:
        node = block.core.node
        index, last = (1, -2) if block.core.fused else (0, _softmax_axis(node))
        value = node.inputs[index]
        assert value is not None
        axis = last % len(shapes.of(value))
        marks = path.flow.inputs.get(node, ((),) * (index + 1))[index]
        mark = next((mark for mark in marks if mark.axis == axis), None)
        fault = _astray(marks, axis, 1 if block.core.fused else 2)
        found.append(Attended(node, index, axis, mark.size(counts) if mark else 0, fault))
    return found


def _softmax_axis(node: ir.Node) -> int:
    return int(node.attributes["axis"].value) if "axis" in node.attributes else -1


def _astray(marks: Marks, axis: int, most: int) -> str:
    """What the rules found in place of one token axis for the keys, and one for the queries of a softmax."""
    plain = all(mark.outer * mark.inner == 1 for mark in marks)
    if len(marks) == most and plain and any(mark.axis == axis for mark in marks):
        return ""
    axes = ", ".join(
        f"{mark.axis}{' (folded with others)' if mark.outer * mark.inner != 1 else ''}" for mark in marks
    )
    return f"tokens on axes {axes}" if axes else "no tokens"


def prove(
    model: ir.Model,
    plan: Plan,
    before: Shapes,
    streams: Sequence[Stream],
    interface: Interface,
    axes: Sequence[Attended] = (),
) -> Shapes:
    """Check a rewritten model. Raises: ProofError saying what does not hold; the caller discards the copy.

    streams: every reduced and every restored stream. interface: the inputs and outputs it must have. axes: those that
    attention runs over.
    """
    fault = partial(ProofError, run=f"method {', '.join(plan.methods())}, plan {plan.spec()}")
    for axis in axes:
        if axis.fault:
            raise fault(
                "the tokens that would leave are not those that attention runs over",
                node=told(axis.node),
                expected=f"tokens on axis {axis.axis} of its input {axis.index}, and beside it on the queries' alone",
                found=axis.fault,
            )
    after = _inferred(model, fault)
    for name, place, count in streams:
        if name not in after.dims:
            raise fault("the shape of a stream of tokens cannot be proven", node=f"tensor {name!r}")
        if after.dims[name][place] != count:
            raise fault(
                "a stream has another count of tokens than the plan says",
                node=f"tensor {name!r}",
                expected=f"{count} tokens on axis {place}",
                found=describe(after.dims[name]),
            )
    for axis in axes:
        _attends(axis, after, fault)
    if plan.sites and (open_values := _open(model, after)):
        first, node = next(iter(open_values.items()))
        if first not in before.dims:
            raise UnsupportedError(
                f"{node} gives {first!r} a shape that only the run tells, and every shape must be known when the model is "
                "compiled; export the model without it"
            )
        raise fault(
            f"{len(open_values)} tensors have no proven static shape, and every shape must be known when the model is "
            "compiled",
            node=f"{first!r} of {node}",
        )
    _same_interface(model, interface, before, after, fault)
    return after


def _inferred(model: ir.Model, fault: partial[ProofError]) -> Shapes:
    import onnx.checker

    proto, _ = skeleton(model)
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as cause:
        raise fault(f"the reduced model is not valid ONNX: {str(cause).splitlines()[0][:300]}") from cause
    try:
        return infer(model)
    except TokenrtError as cause:
        node, found = _stops(model)
        expected = "inputs that fit one another" if node else ""
        raise fault(
            f"the reduced model fails shape inference: {cause}", node=node, expected=expected, found=found
        ) from cause


def _stops(model: ir.Model) -> tuple[str, str]:
    """The first node whose output inference cannot tell though it knows all inputs, and these; inference names a later one."""
    loose = infer(model, strict=False)
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        unknown = any(value.name and not loose.known(value) for value in node.outputs)
        if unknown and all(map(loose.known, inputs)):
            return told(node), " and ".join(f"{v.name!r} {describe(loose.of(v))}" for v in inputs)
    return "", ""


def _attends(axis: Attended, after: Shapes, fault: partial[ProofError]) -> None:
    """Whether attention that is still there runs over as many tokens as planned."""
    value = axis.node.inputs[axis.index]
    if axis.node.graph is None or value is None:
        return
    if not after.known(value) or after.of(value)[axis.axis] != axis.count:
        raise fault(
            "attention does not run over the tokens that are left",
            node=told(axis.node),
            expected=f"{axis.count} tokens on axis {axis.axis} of tensor {value.name!r}",
            found=describe(after.of(value)) if after.known(value) else "no known shape",
        )


def _same_interface(
    model: ir.Model, interface: Interface, before: Shapes, after: Shapes, fault: partial[ProofError]
) -> None:
    declared = Interface.of(model)
    for expected, found in interface.differences(declared):
        raise fault("the inputs or outputs are not the original's", expected=expected, found=found)
    for port in (*declared.inputs, *declared.outputs):
        kind = after.types.get(port.name)
        if kind is not None and not port.fits(Port(port.name, kind)):
            raise fault(
                "an output has another type",
                node=f"output {port.name!r}",
                expected=str(port.dtype),
                found=str(kind),
            )
        was, now = before.dims.get(port.name), after.dims.get(port.name)
        if was is not None and was != now:
            raise fault(
                "an input or output has another shape",
                node=f"tensor {port.name!r}",
                expected=describe(was),
                found=describe(now or ()),
            )


def _open(model: ir.Model, after: Shapes) -> dict[str, str]:
    """Tensors without a proven shape and their nodes, but for those that come of an operator from outside ONNX."""
    foreign: set[ir.Value] = set()
    found: dict[str, str] = {}
    for node in model.graph:
        unknown = [value for value in node.outputs if value.name and not after.known(value)]
        if node.domain not in KNOWN_DOMAINS or not foreign.isdisjoint(node.inputs):
            foreign.update(unknown)
        else:
            found.update((str(value.name), told(node)) for value in unknown)
    return found
