"""Several transformers in one graph: which of them to reduce, and that each can be reduced for itself.

Every transformer has a token axis and a route of its own. The routes are found on the graph as it came and applied one
after the other; that is right as long as what one changes is nothing another one works on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import WeighPool
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.plan import Where
from tokenrt.passes.planning.route import Route, closed, cut

Chosen = Sequence[int] | Literal["all"] | None
Routes = Mapping[int, Route]
"""The routes of the transformers that are reduced."""

IN_TURN = (
    ", or let both leave in two runs, frames first, by a method that reads what they hold (where they merge, with "
    "--no-proportional-attention), and then places of the file that is written"
)


def choose(
    transformers: Sequence[Structure], wanted: Chosen, where: Where, method: Method
) -> tuple[int, ...]:
    """The transformers to reduce: those wanted, by default the first, of those without a causal mask where there are some.

    Where attention runs over two axes of one stream in turn, frames and places, the default is the longer one.

    By default, tokens that leave around each attention do so in every transformer that has as many of them as the largest and a
    place for it, as ToMe-SD does at the highest resolution only. Raises: PlanError.
    """
    numbers = range(len(transformers))
    if wanted is None:
        most = max(structure.tokens - structure.protect for structure in transformers)
        fits = (
            number
            for number, structure in enumerate(transformers)
            if structure.tokens - structure.protect == most
            and any(cut(block, where) and not block.apart for block in structure.blocks)
        )
        free = (
            number
            for number, structure in enumerate(transformers)
            if any(not block.apart and not closed(block, where, method) for block in structure.blocks)
        )
        around = tuple(fits) if where == "around-attention" else ()
        return around or (_largest_in_turn(transformers, [*free] or [0]),)
    if isinstance(wanted, str):
        if wanted != "all":
            raise PlanError(f"--transformers {wanted}: expected their numbers, as in 0,2, or all")
        return tuple(numbers)
    for number in wanted:
        if number not in numbers:
            raise PlanError(
                f"--transformers: transformer {number} does not exist; the model has {len(numbers)}, counted from 0"
            )
    if not wanted or len(set(wanted)) != len(wanted):
        given = ",".join(map(str, wanted))
        raise PlanError(f"--transformers {given!r}: name one or more, and each of them once")
    return tuple(sorted(wanted))


def _largest_in_turn(transformers: Sequence[Structure], free: Sequence[int]) -> int:
    """The first of these, or, where it takes turns with others on one stream, the one of them with the most tokens."""
    first = transformers[free[0]]
    if first.stream.across == 1:
        return free[0]
    turns = [n for n in free if first.flow.marks.get(transformers[n].blocks[0].core.key)]
    return max(turns, key=lambda number: transformers[number].tokens)


def check_apart(routes: Routes) -> None:
    """Whether each can be reduced as if it were alone. Raises: UnsupportedError naming the tensor or node."""
    for (one, first), (other, second) in itertools.combinations(routes.items(), 2):
        both = f"transformers {one} and {other} cannot be reduced together"
        remedy = f"choose one with --transformers {one} or --transformers {other}"
        for value, marks in first.flow.marks.items():
            if {mark.axis for mark in marks} & {mark.axis for mark in second.flow.marks.get(value, ())}:
                turns = "" if all(mark.plain for mark in marks) else IN_TURN
                raise UnsupportedError(
                    f"{both}: an axis of {value.name!r} counts the tokens of both; {remedy}{turns}"
                )
        for node in _changed(first.flow, second.flow):
            raise UnsupportedError(
                f"{both}: {node.op_type} node {node.name!r} has to be changed for both; {remedy}"
            )


def _changed(first: Flow, second: Flow) -> list[ir.Node]:
    """Nodes that both edit, or that one replaces (a pool weighted by size) on the other's token axis."""
    edited, other = ({edit.node for edit in flow.edits} for flow in (first, second))
    replaced = [
        edit.node
        for here, there in ((first, second), (second, first))
        for edit in here.edits
        if isinstance(edit, WeighPool) and edit.node in there.inputs
    ]
    return [*(node for node in edited if node in other), *replaced]
