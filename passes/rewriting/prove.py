"""Proof of a rewritten model: valid ONNX, every shape static, every count as planned, the batch as free as before."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.errors import ProofError, TokenrtError
from tokenrt.passes.graph.model import skeleton
from tokenrt.passes.graph.shapes import Shapes, describe, infer
from tokenrt.passes.ops import DOMAIN
from tokenrt.passes.planning.plan import Plan

KNOWN_DOMAINS = frozenset({"", "ai.onnx", DOMAIN})


def prove(model: ir.Model, plan: Plan, before: Shapes, streams: list[tuple[str, int, int]]) -> Shapes:
    """Check a rewritten model. Raises: ProofError saying what does not hold; the caller discards the copy.

    streams: (tensor, token axis, planned count) of every reduced and every restored stream.
    """
    import onnx.checker

    proto, _ = skeleton(model)
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as cause:
        raise ProofError(
            f"the reduced model is not valid ONNX: {str(cause).splitlines()[0][:300]}"
        ) from cause
    try:
        after = infer(model)
    except TokenrtError as cause:
        raise ProofError(f"the reduced model fails shape inference: {cause}") from cause
    for name, axis, count in streams:
        if name not in after.dims:
            raise ProofError(f"the shape of the stream {name!r} cannot be proven")
        if after.dims[name][axis] != count:
            raise ProofError(
                f"stream {name!r} has shape {describe(after.dims[name])}; the plan says {count} tokens on axis {axis}"
            )
    open_values = _open(model, after)
    if open_values:
        raise ProofError(
            f"{len(open_values)} tensors have no proven static shape, first {open_values[0]}; "
            "every shape must be known when the model is compiled"
        )
    for value in model.graph.outputs:
        was, now = before.dims.get(str(value.name)), after.dims.get(str(value.name))
        if was is not None and was != now:
            raise ProofError(f"output {value.name!r} was {describe(was)} and is now {describe(now or ())}")
    return after


def _open(model: ir.Model, after: Shapes) -> list[str]:
    """Tensors without a proven shape, but for those that come of an operator from outside ONNX."""
    foreign: set[ir.Value] = set()
    found: list[str] = []
    for node in model.graph:
        unknown = [value for value in node.outputs if value.name and not after.known(value)]
        if node.domain not in KNOWN_DOMAINS or not foreign.isdisjoint(node.inputs):
            foreign.update(unknown)
        else:
            found.extend(f"{value.name!r} of {node.op_type} node {node.name!r}" for value in unknown)
    return found
