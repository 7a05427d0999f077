"""Caches of a language model's prefill: one set of tokens for all layers where that is asked for, and what the host is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.outlets.caches import caches, windows
from tokenrt.passes.graph.interface import KEPT
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
        _tell(rewriter)
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


def _tell(rewriter: Rewriter) -> None:
    """Say of caches between two choices which tokens they hold; those behind the last are told in any case."""
    if not rewriter.path.ordered:
        return
    every = caches(rewriter.graph, rewriter.structure, rewriter.shapes)
    held = {rewriter.path.flow.marks[cache.output][0].stage for cache in every}
    rewriter.op.before, rewriter.op.prefix = None, "tokenrt_kept"
    for number in sorted(held - {0, len(rewriter.stages) - 1}):
        stage = rewriter.stages[number]
        rewriter.output(rewriter.op.value(stage.position), _index(rewriter, number), stage.count)


def _index(rewriter: Rewriter, number: int) -> str:
    """The output that says which tokens are left behind a choice."""
    last = number == len(rewriter.path.sites)
    return KEPT if last else f"{KEPT}_layer{rewriter.plan.sites[number - 1].block + 1}"


def told(rewriter: Rewriter) -> list[dict[str, Any]]:
    """For each layer with a cache: its number, its outputs, how many tokens these hold, and the output that says which."""
    counts, layers = rewriter.plan.counts(), dict[int, dict[str, Any]]()
    for cache in caches(rewriter.graph, rewriter.structure, rewriter.shapes):
        mark, last = rewriter.path.flow.marks[cache.output][0], len(rewriter.path.sites)
        stage = last if rewriter.plan.cache == GATHERED else mark.stage
        layer = layers.setdefault(cache.block, {"layer": cache.block})
        layer |= {cache.part: str(cache.output.name), "tokens": counts[stage]}
        layer |= {"index": _index(rewriter, stage)} if stage else {}
    return [*layers.values()]


def told_windows(rewriter: Rewriter) -> list[dict[str, Any]]:
    """For each layer whose cache is that of a window: its number, its outputs, how many tokens they hold, and the first."""
    layers = dict[int, dict[str, Any]]()
    for cache in windows(rewriter.graph, rewriter.structure, rewriter.shapes):
        held = rewriter.shapes.of(cache.output)[cache.axis]
        layer = layers.setdefault(cache.block, {"layer": cache.block})
        first = rewriter.structure.tokens - held
        layer |= {cache.part: str(cache.output.name), "tokens": held, "first": first}
    return [*layers.values()]
