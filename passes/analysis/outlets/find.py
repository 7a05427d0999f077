"""Outputs that hold tokens, and how far up a choice among them can be made.

An outlet is an output of the model with a row for each token, or for each group of tokens where a projector pools or shuffles
them. It has a token axis of its own: that of a vision tower ends where tokens are put together, and another begins behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.flow import Cut, Flow, follow
from tokenrt.passes.analysis.grid import Grid
from tokenrt.passes.analysis.marks import Array, Mark
from tokenrt.passes.analysis.outlets.origin import NOTHING, Origin, trace
from tokenrt.passes.analysis.stream import Layout, layout
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.ancestry import between
from tokenrt.passes.graph.shapes import Shapes, one_picture


@dataclass(frozen=True)
class Source:
    """Where the rows of an outlet come from.

    transformer: whose tokens. tokens [M,U]: those of each row, again from the first where a row has fewer. folded: rows come of
    several pictures, as crops that are put together: the numbers are b N + n then. pictures: how many those of a sequence are.
    """

    transformer: int
    tokens: Array
    folded: bool
    pictures: int = 1


@dataclass(frozen=True)
class Outlet:
    """One output with a row for each token.

    held: how it holds them. fixed: rows that no token reaches, as newlines between rows of crops; they never leave. groups: of
    each row, as `origin` numbers them, equal where outputs have one token axis; None where they cannot be told. source: the same
    as tokens of one transformer. grid: the layout of the rows, where it follows from that of the tokens.
    """

    value: ir.Value
    held: Layout
    fixed: tuple[int, ...] = ()
    groups: Array | None = None
    source: Source | None = None
    grid: Grid | None = None
    origin: Origin | None = None
    frames: int = 1

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def axis(self) -> int:
        return self.held.marks[0].axis

    @property
    def tokens(self) -> int:
        return self.held.dims[-2] * self.frames

    def beside(self, other: Outlet) -> bool:
        """Whether the rows of both are made of the same tokens, one by one."""
        return (
            self.groups is not None and other.groups is not None and np.array_equal(self.groups, other.groups)
        )


def as_clip(outlet: Outlet, grid: Grid, structures: Sequence[Structure]) -> Outlet | None:
    """The same with its F pictures as the frames of one clip of F x h x w tokens; None where it has others."""
    dims = outlet.held.dims
    if len(grid) != 3 or len(dims) != 3 or dims[0] != grid[0] or prod(grid) != dims[0] * dims[1]:
        return None
    frames = (dims[0], dims[1])
    held = layout((Mark(0, grid=frames), Mark(1, grid=frames, part=1)), dims)
    if held is None:
        return None
    groups = None if outlet.groups is None else outlet.groups.reshape(1, -1)
    source = None
    if groups is not None and outlet.origin is not None:
        source = _source(groups, outlet.origin, structures)
    return replace(outlet, held=held, groups=groups, source=source, grid=grid, frames=dims[0], fixed=())


@dataclass(frozen=True)
class Climb:
    """A value in front of an outlet whose rows become its rows one by one, and the flow from there."""

    value: ir.Value
    held: Layout
    flow: Flow


def find(graph: ir.Graph, shapes: Shapes, structures: Sequence[Structure]) -> tuple[Outlet, ...]:
    """The outlets of a model, in the order of its outputs."""
    origin = trace(graph, shapes, structures)
    found = (_outlet(value, shapes, structures, origin) for value in graph.outputs)
    return tuple(outlet for outlet in found if outlet is not None)


def _outlet(
    value: ir.Value, shapes: Shapes, structures: Sequence[Structure], origin: Origin
) -> Outlet | None:
    """An output as an outlet: rows of channels, of which more than one come of different tokens."""
    if not shapes.known(value) or value.dtype not in FLOATS:
        return None
    dims, entries = shapes.of(value), origin.of.get(value)
    if len(dims) < 2 or dims[-2] < 2:
        return None
    held = layout((Mark(len(dims) - 2),), dims)
    if held is None or held.order != "rows":
        return None
    if entries is None:
        # Of a tensor [B,M,C] whose rows nothing is known of, the middle axis is the one that can count tokens.
        return Outlet(value, held) if len(dims) == 3 else None
    if (entries != entries[..., :1]).any():
        return None
    rows = entries[..., 0]
    rows = rows.reshape(prod(rows.shape[:-1]), -1)
    if len(np.unique(rows[0])) < 2:
        return None
    fixed = tuple(np.flatnonzero((rows == NOTHING).all(axis=0)).tolist())
    source = _source(rows, origin, structures)
    grid = None if source is None else _grid(source, structures[source.transformer])
    return Outlet(value, held, fixed, rows, source, grid, origin)


def _source(rows: Array, origin: Origin, structures: Sequence[Structure]) -> Source | None:
    """The tokens of each row [M] of every picture, where they are of one transformer."""
    first = rows[0]
    members = [origin.groups.tokens(int(group)) for group in first]
    every = [token for group in members for token in group]
    number = max(place for place, start in enumerate(origin.starts) if start <= every[0])
    tokens, start = structures[number].tokens, origin.starts[number]
    pictures = one_picture((structures[number].stream.rows,))[0]
    if not all(start <= token < start + pictures * tokens for token in every):
        return None
    width = max(map(len, members))
    table = np.array([_filled([token - start for token in group] or [0], width) for group in members])
    folded = bool((table // tokens != 0).any())
    return Source(number, table, folded, pictures // len(rows) if folded else 1)


def _filled(tokens: list[int], width: int) -> list[int]:
    return (tokens * width)[:width]


def _grid(source: Source, structure: Structure) -> Grid | None:
    """The layout (h, w) of rows made of k x k squares of a grid, row by row."""
    free = structure.tokens - structure.protect
    if structure.grid is None or len(structure.grid) != 2 or source.folded:
        return None
    height, width = structure.grid
    side = int(source.tokens.shape[1] ** 0.5)
    if side**2 != source.tokens.shape[1] or free != source.tokens.size or height % side or width % side:
        return None
    places = np.searchsorted(np.setdiff1d(np.arange(structure.tokens), structure.protected), source.tokens)
    cells = np.arange(free).reshape(height // side, side, width // side, side).transpose(0, 2, 1, 3)
    return (height // side, width // side) if np.array_equal(cells.reshape(places.shape), places) else None


def climb(graph: ir.Graph, shapes: Shapes, outlet: Outlet) -> Climb:
    """The value farthest up whose rows become those of the outlet one by one, by the rules of every operator between.

    Whoever else reads it must lead to no other output.
    """
    followed = outlet.origin is not None and outlet.frames == 1
    every = [value for node in graph for value in node.outputs] if followed else []
    for value in every:
        if value is not outlet.value and _same_rows(value, outlet):
            found = _proven(graph, shapes, value, outlet)
            if found is not None:
                return found
    return here(outlet)


def here(outlet: Outlet) -> Climb:
    """The climb that stays at the outlet."""
    return Climb(outlet.value, outlet.held, Flow(marks={outlet.value: outlet.held.marks}))


def _same_rows(value: ir.Value, outlet: Outlet) -> bool:
    """Whether a tensor has the rows of the outlet, each with channels of all its tokens."""
    origin, groups = outlet.origin, outlet.groups
    entries = None if origin is None else origin.of.get(value)
    if origin is None or groups is None or entries is None or entries.ndim < 2:
        return False
    if entries[..., 0].size != groups.size:
        return False
    return np.array_equal(origin.groups.over(entries).reshape(groups.shape), groups)


def _proven(graph: ir.Graph, shapes: Shapes, value: ir.Value, outlet: Outlet) -> Climb | None:
    """The climb to a value, where the rules lead its tokens to the outlet and to nothing else."""
    dims = shapes.of(value)
    held = layout((Mark(len(dims) - 2),), dims)
    if held is None or held.order != "rows" or dims[-2] != outlet.tokens:
        return None
    flow = follow(
        graph, shapes, {value: held.marks}, tokens=outlet.tokens, protected=outlet.fixed, sites=[Cut(value)]
    )
    ends = {id(stop.output) for stop in flow.blocked}
    plain = flow.marks.get(outlet.value) == (Mark(outlet.axis, stage=1),)
    reached = plain and ends == {id(outlet.value)} and not any(stop.node for stop in flow.blocked)
    way = between(value, outlet.value) - (outlet.origin.inside if outlet.origin is not None else frozenset())
    return Climb(value, held, flow) if reached and all(node in way for node in flow.inputs) else None


FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
