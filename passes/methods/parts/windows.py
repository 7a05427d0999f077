"""Windows of the token grid, and the step in which some of them become one token each."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Method, Ops, Site, Value
from tokenrt.passes.methods.parts import bipartite, steps
from tokenrt.passes.methods.parts.bipartite import Pairs

Positions = np.ndarray[Any, np.dtype[np.int64]]


def windows(method: Method, site: Site, height: int, width: int) -> Positions:
    """Token positions of every complete window of the grid: [W, height*width], both in row-major order.

    Of clips each frame has its own. Raises: MethodError where the layout of the tokens is unknown.
    """
    if site.grid is None:
        raise steps.no_grid(method.name, site)
    rows, columns = site.grid[-2:]
    cells = site.protect + np.arange(site.tokens - site.protect).reshape(-1, rows, columns)
    down, right, frames = rows // height, columns // width, len(cells)
    whole = cells[:, : down * height, : right * width]
    split = whole.reshape(frames, down, height, right, width)
    return np.asarray(split.transpose(0, 1, 3, 2, 4).reshape(frames * down * right, height * width))


def likeness(op: Ops, rows: Value, table: Positions) -> Value:
    """Mean cosine [B,W] of the pairs within each window of rows [B,N,C]: (|sum of units|^2 - sum of |unit|^2) / pairs."""
    count, cells = table.shape
    unit = op("LpNormalization", rows, axis=2, p=2)
    members = op("Gather", unit, table.ravel(), axis=1)
    split = op("Reshape", members, np.array([0, count, cells, -1]))
    total = op("ReduceSum", split, np.array([2]), keepdims=0)
    whole = op("ReduceSum", op("Mul", total, total), steps.LAST, keepdims=0)
    own = op("ReduceSum", op("Mul", split, split), np.array([2, 3]), keepdims=0)
    return op("Mul", op("Sub", whole, own), 1 / (cells * (cells - 1)))


def misfit(method: Method, table: Positions, site: Site) -> PlanError:
    """The error for a number of tokens to remove that is not a whole number of windows there are."""
    saved = table.shape[1] - 1
    least = min(site.removed // saved, len(table))
    fitting = sorted({site.tokens - saved * count for count in (least, min(least + 1, len(table)))})
    return PlanError(
        f"method {method.name!r} removes {saved} tokens for each window it merges, of which the grid {site.grid} "
        f"has {len(table)}; removing {site.removed} of {site.tokens} does not fit, keep "
        f"{' or '.join(str(count) for count in fitting)}"
    )


def shared(
    op: Ops,
    tokens: Value,
    table: Positions,
    chosen: Value,
    count: int,
    site: Site,
    *,
    place: int,
    behind: int,
) -> Pairs:
    """Make each of `count` windows `chosen` [B,count] of `table` one token, at its cell `place`.

    Output order: the first `behind` of the tokens outside those windows, the windows as chosen, the rest of the
    others; protected tokens lead, the others ascend.
    """
    cells = table.shape[1]
    others = site.tokens - count * cells
    parts = [op("Gather", op.constant(table[:, place]), chosen, axis=0)]
    if others:
        left = _outside(op, tokens, table, chosen, count, site)
        parts = [steps.cut(op, left, 0, behind)] * (behind > 0) + parts
        parts += [steps.cut(op, left, behind, others)] * (behind < others)
    moved = op("Gather", op.constant(np.delete(table, place, axis=1)), chosen, axis=0)
    source = op("Reshape", moved, np.array([0, count * (cells - 1)]))
    slot = np.repeat(np.arange(behind, behind + count), cells - 1)[None]
    every = op("Expand", op.constant(slot), steps.batch_shape(op, tokens, slot.size))
    return Pairs(bipartite.joined(op, parts), source, every)


def _outside(op: Ops, tokens: Value, table: Positions, chosen: Value, count: int, site: Site) -> Value:
    """Protected tokens and those outside the chosen windows, ascending."""
    keep = site.tokens - count * table.shape[1]
    if keep == site.protect:
        return steps.numbered(op, tokens, keep)
    window = np.full(site.tokens, len(table))
    window[table] = np.arange(len(table))[:, None]
    free = op(
        "Expand", op.constant(np.ones((1, 1), np.float32)), steps.batch_shape(op, tokens, len(table) + 1)
    )
    none = op("Expand", op.constant(np.zeros((1, 1), np.float32)), steps.batch_shape(op, tokens, count))
    score = op("Gather", op("ScatterElements", free, chosen, none, axis=1), window, axis=1)
    return op("TokenSelect", score, keep=keep, protect=site.protect, order=0)
