"""Plan and reduce: the main job, from a model and a budget to a proven, reduced model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.prepare import Protect, ShapeOption
from tokenrt.passes.graph.model import ModelLike, check_target, save
from tokenrt.passes.planning.outputs import handover
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.planning.request import Request
from tokenrt.passes.planning.several import Chosen
from tokenrt.passes.reducer import Reducer
from tokenrt.passes.report import Reduced


def plan(
    model: ModelLike,
    *,
    method: str,
    budget: Budget,
    site: str | None = None,
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    grid: Sequence[int] | None = None,
    transformers: Chosen = None,
    protect: Protect = None,
    span: str | None = None,
    text: str | None = None,
    short: str | Sequence[str] | None = None,
    cache: str | None = None,
    tap_layer: int | None = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
) -> Plan:
    """Turn a budget into integer token counts for this model, the same budget for each transformer that is reduced.

    site: after-attention (the default), after-block, or around-attention, the only place of methods whose tokens
    come back after each attention; output or output:NAME reduces the tokens of an output itself, which becomes [B,K,C]; cache,
    for methods that choose entries of a language model's cache, its outputs [B,H,N,D], which become [B,H,K,D].
    grid: (h, w) or (frames, h, w), the layout of the unprotected tokens where the graph does not show it. transformers: which are
    reduced, counted from 0 in graph order, or "all"; by default the first, and for methods whose tokens come back after each
    attention all that have as many tokens as the largest. protect: tokens that never leave beside those that the analysis finds,
    as "0,-1,200:217" or a list of positions. span: "S:E", only these tokens may leave. text: "S:E", the words of a language
    model's prompt that the method reads, by default all behind the tokens that may leave. short: outputs with a row for each
    token, by name, or "all", that keep the rows that are left instead of getting all back. cache: "per-layer" (the default: the
    cache of a layer holds the tokens that reached it) or "gathered" (every layer's holds those that are left at the end).
    tap_layer: for an output, the block whose attention and keys a method reads, -1 for the last. shape: of inputs, those
    too that a method adds (text, quotas).
    Raises: PlanError, MethodError; NothingToDoError where no site would lose a token and `allow_noop` is off.
    """
    asked = Request(
        site=site,
        proportional_attention=proportional_attention,
        options=options,
        grid=grid,
        transformers=transformers,
        protect=protect,
        span=span,
        text=text,
        short=short,
        cache=cache,
        tap_layer=tap_layer,
        shape=shape,
        allow_noop=allow_noop,
    )
    return Reducer.to_plan(model, method, asked).plan(method, budget, asked)


def reduce(
    model: ModelLike,
    *,
    method: str | None = None,
    budget: Budget | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    site: str | None = None,
    proportional_attention: bool | None = None,
    options: Mapping[str, Any] | None = None,
    grid: Sequence[int] | None = None,
    transformers: Chosen = None,
    protect: Protect = None,
    span: str | None = None,
    text: str | None = None,
    short: str | Sequence[str] | None = None,
    cache: str | None = None,
    tap_layer: int | None = None,
    shape: ShapeOption = None,
    allow_noop: bool = False,
    source_map: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Reduced:
    """Reduce the tokens of a model, by a plan or by a method and a budget; prove the result; write it to `output` if given.

    site, grid, transformers, protect, span, text, short, cache, tap_layer: as for `plan`. source_map: add the output
    `token_source_map` [B,N0] int64, the token behind the last site each original one lives in (-1: dropped); transformer 1, where
    reduced, has `token_source_map_1`. Where an output stays short the model gains `kept_index` [B,K] int64, the original position
    of each of its rows, or, where tokens were merged, that map; what a host must do with it is written beside the model, as
    R.onnx.json. Where tokens rest from one step to the next, R.dense.onnx beside it is the step at which none rests: it gives the
    first state.
    Raises: TokenrtError; nothing is written unless the proof holds.
    """
    import time

    start = time.perf_counter()
    if output is not None:
        check_target(output, model)
    asked = Request(
        site=site,
        proportional_attention=proportional_attention,
        options=options,
        grid=grid,
        transformers=transformers,
        protect=protect,
        span=span,
        text=text,
        short=short,
        cache=cache,
        tap_layer=tap_layer,
        shape=shape,
        allow_noop=allow_noop,
    )
    if plan is not None:
        if method is not None or budget is not None:
            raise PlanError("give either a plan or a method with a budget, not both")
        asked.beside_a_plan()
        wanted = plan if isinstance(plan, Plan) else Plan.load(plan)
        if grid is not None:
            wanted = wanted.laid_out(grid)
        reducer = Reducer.of(model, shape, wanted.wanted)
    elif method is None or budget is None:
        raise PlanError(
            "reduce needs a plan, or a method and a budget (--remove, --keep with --layers, --tokens, --flops)"
        )
    else:
        reducer = Reducer.to_plan(model, method, asked)
        wanted = reducer.plan(method, budget, asked)
    found = reducer.reduce(wanted, source_map=source_map, allow_noop=allow_noop)
    if output is not None:
        save(found.model, output)
        if found.dense is not None:
            save(found.dense, handover.dense(output))
        handover.write(found.plan, found.model, output)
    return replace(found, report=replace(found.report, seconds=time.perf_counter() - start))
