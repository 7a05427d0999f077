"""Caches of a language model's prefill: one set of tokens for all layers where that is asked for, and what the host is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.outlets.caches import caches
from tokenrt.passes.planning.plan import GATHERED
from tokenrt.passes.rewriting.auxiliary import Auxiliaries
from tokenrt.passes.rewriting.stages import Stage, since

if TYPE_CHECKING:
    from tokenrt.passes.rewriting.rewrite import Rewriter


def gather(rewriter: Rewriter) -> dict[str, tuple[int, ...]]:
    """Let the caches of earlier layers hold the tokens that are left at the end, where that is asked for.

    Returns their shapes. Raises: PlanError where the model has no cache.
    """
    found: dict[str, tuple[int, ...]] = {}
    if rewriter.plan.cache != GATHERED:
        return found
    op, graph, shapes = rewriter.op, rewriter.graph, rewriter.shapes
    every = caches(graph, rewriter.structure, shapes)
    if not every:
        raise PlanError(
            "--cache gathered: no output of the model is the keys or values of a block, [B,heads,tokens,head width]"
        )
    op.before, op.prefix = None, "tokenrt_cache"
    last, rows = rewriter.stages[-1], rewriter.structure.stream.rows
    auxiliaries = Auxiliaries(op, shapes, None, rows)
    for cache in every:
        value, dims = cache.output, shapes.of(cache.output)
        stage = rewriter.stages[rewriter.path.flow.marks[value][0].stage]
        if stage is last:
            continue
        left = Stage(last.count, position=since(op, last, stage))
        taken = auxiliaries.take(value, cache.axis, 4, dims, 0, left, None if rows == 1 else 0)
        place, name = [*graph.outputs].index(value), str(value.name)
        declared = [*(value.shape or ())]
        declared[cache.axis : cache.axis + 1] = [last.count] if declared else []
        value.name, taken.name = f"{name}_every", name
        taken.type, taken.shape = value.type, ir.Shape(declared) if declared else None
        graph.outputs[place] = taken
        found[name] = (*dims[: cache.axis], last.count, *dims[cache.axis + 1 :])
    return found


def told(rewriter: Rewriter) -> list[dict[str, Any]]:
    """For each layer with a cache: its number, the names of its outputs, and how many tokens these hold."""
    counts, layers = rewriter.plan.counts(), dict[int, dict[str, Any]]()
    for cache in caches(rewriter.graph, rewriter.structure, rewriter.shapes):
        count = rewriter.path.flow.marks[cache.output][0].size(counts)
        layers.setdefault(cache.block, {"layer": cache.block})[cache.part] = str(cache.output.name)
        layers[cache.block]["tokens"] = counts[-1] if rewriter.plan.cache == GATHERED else count
    return [*layers.values()]
