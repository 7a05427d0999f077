"""Outputs that keep the tokens that are left: their shapes, rows of blocks before the last choice, and which tokens they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes.analysis.marks import Mark, Marks
from tokenrt.passes.analysis.stream import Layout, layout
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.interface import KEPT, MAP
from tokenrt.passes.graph.shapes import describe
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.route import is_short
from tokenrt.passes.rewriting import units
from tokenrt.passes.rewriting.outputs import caches
from tokenrt.passes.rewriting.stages import compose
from tokenrt.passes.rewriting.streams import from_rows, to_rows

if TYPE_CHECKING:
    from tokenrt.passes.rewriting.rewrite import Rewriter


def shorten(rewriter: Rewriter) -> dict[str, tuple[int, ...]]:
    """The new shapes of outputs that keep the tokens that are left; the model then tells which these are.

    Raises: PlanError where one that was named has no row for each token, or gets all of them back.
    """
    found, ordered = caches.gather(rewriter), rewriter.path.ordered
    counts, asked = rewriter.plan.counts(), rewriter.path.short
    told: list[Mark] = []
    for value in [*rewriter.graph.outputs]:
        marks = rewriter.path.flow.marks.get(value, ())
        stage = rewriter.reduced.get(value, (value, 0))[1] or max((mark.stage for mark in marks), default=0)
        if not marks or not is_short(value, asked) or str(value.name) in found:
            continue
        if not stage if ordered else stage < _passed(rewriter, value):
            continue
        end, dims, declared = value, list(rewriter.shapes.of(value)), [*(value.shape or ())]
        if stage < len(counts) - 1 and not ordered:
            brought = _brought(rewriter, value, marks, stage)
            if brought is None:
                continue
            end = brought
        own = [replace(mark, stage=stage if ordered else len(counts) - 1) for mark in marks]
        for mark in own:
            dims[mark.axis] = mark.size(counts)
            declared[mark.axis : mark.axis + 1] = [dims[mark.axis]] if declared else []
        end.shape = ir.Shape(declared) if declared else None
        found[str(end.name)] = tuple(dims)
        told.extend(own)
    plan = rewriter.plan
    missing = [name for name in plan.short.split(",") if name not in (*found, "", "all")]
    if missing or (plan.short and not found and not ordered):
        which = missing[0] if missing else "any output"
        every = ", ".join(str(value.name) for value in rewriter.graph.outputs)
        raise PlanError(
            f"--short {plan.short}: no row for each token that is left comes to {which}; outputs: {every}"
        )
    if told and rewriter.structure.stream.across > 1:
        raise UnsupportedError(
            f"output {next(iter(found))!r} has rows of two axes together, frames and places, of which tokens leave along one, "
            "and no index of rows says which these are: drop --short, so that what left comes back"
        )
    if told:
        _tell(rewriter, told)
    return found


def _passed(rewriter: Rewriter, value: ir.Value) -> int:
    """The last site that lies in front of an output; one of an earlier stage gets the tokens back that left there."""
    above = ancestors((value,))
    return max((number for number, cut in enumerate(rewriter.path.sites, 1) if cut.value in above), default=0)


def _brought(rewriter: Rewriter, value: ir.Value, marks: Marks, stage: int) -> ir.Value | None:
    """An output made before the last choice, with the rows of that choice alone; None where it holds no rows and is not named."""
    held = layout(marks, rewriter.shapes.of(value))
    named = str(value.name) in rewriter.plan.short.split(",")
    if held is None or len(marks) != 1:
        if named:
            raise UnsupportedError(
                f"output {value.name!r} {describe(rewriter.shapes.of(value))} is made before the last tokens leave, and has no "
                "plain row of channels for each token"
            )
        return None
    merging = next((method for method in rewriter.methods[stage:] if method.merges), None)
    if merging is not None:
        raise UnsupportedError(
            f"output {value.name!r} is made before {merging.name} merges tokens, and has no rows of the merged ones: use "
            "a method that selects, e.g. topk or divprune, or name other outputs with --short"
        )
    op, (mark,) = rewriter.op, marks
    op.before, op.prefix = None, "tokenrt_short"
    before, after = rewriter.stages[stage], rewriter.stages[-1]
    rows = units.places(op, after, mark)
    if before.source_map is not None:
        rows = compose(op, units.lives(op, before, mark), rows)
    current = rewriter.reduced.get(value, (value, 0))[0]
    kept = _taken(op, current, rows, held, mark.entries(before.count), mark.entries(after.count))
    place = [*rewriter.graph.outputs].index(value)
    kept.name, value.name, kept.type = value.name, f"{value.name}_every", value.type
    rewriter.graph.outputs[place] = kept
    return kept


def _taken(op: GraphOps, value: ir.Value, rows: Value, held: Layout, before: int, after: int) -> ir.Value:
    """The rows [B,K] of a tensor that holds `before` of them."""
    (mark,) = held.marks
    if isinstance(rows, np.ndarray):
        taken: ir.Value = op("Gather", value, rows[0], axis=mark.axis)
    elif held.rows == 1 and mark.outer == mark.inner == 1:
        taken = op("Gather", value, op("Squeeze", rows, [0]), axis=mark.axis)
    else:
        taken = from_rows(op, steps.gather(op, to_rows(op, value, held, before), rows), held, after)
    return taken


def _tell(rewriter: Rewriter, told: Sequence[Mark]) -> None:
    """Add `kept_index`, or `token_source_map` where tokens were merged, in rows of the output that has the most of them.

    Raises: UnsupportedError where the model tells of another choice already: one index cannot speak of both.
    """
    there = [str(value.name) for value in rewriter.graph.outputs if value.name in (KEPT, MAP)]
    if there:
        raise UnsupportedError(
            f"output {there[0]!r} tells of another choice of tokens, so that nothing could say which rows these outputs have: "
            "let those of one transformer stay short, named with --short, and drop --source-map"
        )
    mark = min(told, key=lambda each: (each.unit, each.offset))
    if any(each.order != mark.order for each in told):
        raise UnsupportedError(
            "outputs that stay short have their rows in different orders, as windows have them and as the picture has them: name "
            "those of one order with --short"
        )
    op, stage = rewriter.op, rewriter.stages[-1]
    op.before, op.prefix = None, "tokenrt_kept"
    merged = stage.merged
    value = units.lives(op, stage, mark) if merged else units.places(op, stage, mark)
    count = mark.entries(rewriter.structure.tokens if merged else stage.count)
    rewriter.output(op.value(value), MAP if merged else KEPT, count)
