"""Which axis an attention runs over, proven by the flow of the marks, never by lengths.

The token axis of an attention is the axis its softmax runs over and its result is summed over. A stream's axis is that one
only if its mark arrives there through the projections, in queries, keys and values alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import Mark
from tokenrt.passes.graph.shapes import BATCH, Shapes


def places(core: Core, shapes: Shapes) -> tuple[tuple[ir.Value, int], ...]:
    """Queries, keys and values, each with the axis of it that the attention runs over."""
    query, key, value = core.query, core.key, core.value
    rank = len(shapes.of(key))
    return (
        (query, len(shapes.of(query)) - 2),
        (key, rank - 1 if core.key_transposed else rank - 2),
        (value, len(shapes.of(value)) - 2),
    )


def attends(core: Core, flow: Flow, shapes: Shapes) -> bool:
    """Whether queries, keys and values count the tokens, all of them and nothing else, on the axis it runs over."""
    found: list[Mark] = []
    for value, axis in places(core, shapes):
        marks = flow.marks.get(value, ())
        if len(marks) != 1 or marks[0].axis != axis or not marks[0].plain:
            return False
        found.extend(marks)
    return all(mark.same(found[0]) for mark in found)


def folds_tokens(core: Core, flow: Flow, shapes: Shapes) -> bool:
    """Whether tokens are among what the attention treats as its batch: in front of the two last axes of queries or keys."""
    return any(
        mark.axis < len(shapes.of(value)) - 2
        for value in (core.query, core.key)
        for mark in flow.marks.get(value, ())
    )


def with_heads(core: Core, rows: int, shapes: Shapes) -> Core:
    """The attention with its heads counted, now that it is known to read `rows` pictures."""
    if core.fused:
        return core
    heads, key_heads = (prod(shapes.of(value)[:-2]) // rows for value in (core.query, core.key))
    return replace(core, heads=heads, key_heads=max(key_heads, 1))


def heads_first(core: Core, rows: Sequence[Flow], shapes: Shapes) -> str | None:
    """Why the pictures are not known to come before the heads in what an attention reads, or None where they do.

    rows: for each axis of the stream that counts pictures, a flow of its marks.
    """
    if core.fused:
        return None
    for flow in rows:
        for value in (core.query, core.key, core.value):
            dims, marks = shapes.of(value), flow.marks.get(value, ())
            if len(dims) > 3 and dims[0] % BATCH == 0:
                continue
            if len(marks) != 1:
                return "it cannot be told which axis of its queries, keys and values counts the pictures of the batch"
            (mark,) = marks
            heads_ahead = prod(dims[: mark.axis]) * mark.outer
            if heads_ahead != 1 and heads_ahead % BATCH:
                return (
                    "its heads stand before the pictures of the batch, as in [H,B,N,D], and what is averaged over heads would "
                    "be averaged over pictures; export it with the batch first, or with a batch of 1"
                )
    return None
