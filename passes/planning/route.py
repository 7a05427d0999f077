"""How tokens run through a model with given sites, and where all of them must be there again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.flow import Cut, Flow, follow, reduced_before
from tokenrt.passes.analysis.marks import Blocked
from tokenrt.passes.analysis.structure import Block, Structure
from tokenrt.passes.analysis.trunk import Trunk, Way
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.methods.contract import Method, Returns
from tokenrt.passes.planning import steps
from tokenrt.passes.planning.plan import BEFORE, PlannedSite, Where
from tokenrt.passes.planning.pools import pools, streams

IN_ORDER = "a method that only selects tokens, e.g. fastv or divprune, keeps their order and can be used"

Restored = dict[ir.Node | None, frozenset[ir.Value]]
Stop = tuple[ir.Node | None, ir.Value | None]
"""What needs every token: a node, or an output of the model."""
Carried = dict[tuple[ir.Value, int], Way]


@dataclass(frozen=True)
class Route:
    """How tokens run through a model with these sites: marks, edits, and who receives restored tokens.

    again: values behind the last block that are made a second time, of restored tokens. carried: for a value where tokens are
    restored and the number of a site, how those that left there become what they are at that value. stops: what needs
    every token. short: outputs, by name or "all", that keep the tokens that are left. ordered: these keep their order.
    """

    sites: tuple[Cut, ...]
    flow: Flow
    restored: Restored
    again: Mapping[ir.Value, Way] = field(default_factory=dict)
    carried: Carried = field(default_factory=dict)
    stops: tuple[Blocked, ...] = ()
    short: str = ""
    ordered: bool = False


def cut(block: Block, where: Where) -> Cut | None:
    """The cut a reduction at this place makes, or None where the block has no such place."""
    if where == BEFORE:
        return Cut(block.entry)
    if where == "around-attention":
        return None if isinstance(block.branch, str) else block.branch.inlet
    value = block.attended if where == "after-attention" else block.output
    return None if value is None else Cut(value)


def closed(block: Block, where: Where, method: Method) -> str:
    """Why a method has no place here; nothing where it has one."""
    if cut(block, where) is None:
        return missing(block, where)
    return f"{block.apart}; {IN_ORDER}" if block.apart and not method.keeps_order else ""


def in_order(structure: Structure, sites: Iterable[PlannedSite], able: bool) -> bool:
    """Whether what is left behind these sites keeps its order: a mask there or behind tells tokens apart, or they are cached."""
    return (structure.cached and able) or any(structure.blocks[site.block].apart for site in sites)


def missing(block: Block, where: Where) -> str:
    """Why `cut` gives None."""
    if where == "around-attention":
        return str(block.branch)
    return "attention and MLP run side by side: nothing lies between them"


def returns(structure: Structure, when: Returns, sites: Sequence[PlannedSite]) -> Restored:
    """Where the tokens that left must be there again because the method says so."""
    blocks = structure.blocks
    if when == steps.FROM_LAST:
        return steps.attended(structure)
    if when == "after-attention":
        branches = [blocks[site.block].branch for site in sites]
        return {b.addition: frozenset((b.outlet,)) for b in branches if not isinstance(b, str)}
    if when == "before-last-block":
        back = [blocks[-1].entry]
    elif when == "before-next-site":
        back = [*(blocks[site.block].entry for site in sites[1:]), blocks[-1].output]
    else:
        back = []
    restored: Restored = {}
    for value in back:
        readers = [*dict.fromkeys(node for node, _ in value.uses())]
        for reader in [*readers, None] if value.is_graph_output() else readers:
            restored[reader] = restored.get(reader, frozenset()) | {value}
    return restored


def route(
    graph: ir.Graph,
    shapes: Shapes,
    structure: Structure,
    sites: Sequence[Cut],
    back: Mapping[ir.Node | None, frozenset[ir.Value]],
    drops: Sequence[bool],
    short: str = "",
    unit: int = 1,
    ordered: bool = False,
    rest: bool = False,
) -> Route:
    """Follow the tokens; wherever the tail needs every position, restore at the tap.

    back: who receives restored tokens in any case. drops: for each site, whether tokens leave for good there, so that those
    that left are carried to where they come back. short: outputs, by name or "all", that keep the tokens that are left. unit: so
    many leave together. ordered: tokens keep their order, as under a causal mask, where by default every output is short, as
    caches are. rest: tokens rest for a step, and are there again as the step before left them. Raises: UnsupportedError where an
    operator of the body stops the tokens, or those that left.
    """
    short = short or ("all" if ordered else "")
    restored: Restored = dict(back)
    stops: dict[Stop, Blocked] = {}
    while True:
        flow = follow(
            graph,
            shapes,
            structure.origins,
            tokens=structure.tokens,
            protected=structure.protected,
            sites=sites,
            restored=restored,
            unit=unit,
            ordered=ordered,
        )
        blocking = [*flow.blocked, *_across_rows(structure, flow)]
        reduced = [
            blocked
            for blocked in blocking
            if _behind(blocked, flow, sites)
            and not (blocked.node is None and is_short(blocked.output, short))
        ]
        if rest and not reduced:
            reduced = [
                Blocked(node, "it makes one of all tokens") for node in steps.incomplete(flow, structure)
            ]
        if not reduced:
            break
        for blocked in reduced:
            if blocked.node in structure.body:
                raise UnsupportedError(
                    f"the token axis cannot pass {blocked.describe()}{reduced_before(graph)}"
                )
        fresh = {(blocked.node, blocked.output): blocked for blocked in reduced}
        if fresh.keys() <= stops.keys():
            raise UnsupportedError(f"tokens cannot be restored before {reduced[0].describe()}")
        stops = fresh | stops
        fresh_edges = steps.late(stops, flow, structure, shapes) if rest else edges(stops, flow, structure)
        restored = _joined(back, fresh_edges)
    needed = {
        reader: frozenset(value for value in values if _short(value, reader, flow, sites))
        for reader, values in restored.items()
    }
    needed = {reader: values for reader, values in needed.items() if values}
    ways = Ways(structure, shapes, flow, tuple(sites), tuple(drops))
    again = {} if rest else ways.again(needed)
    carried = {} if rest else ways.carried(needed, again)
    return Route(tuple(sites), flow, needed, again, carried, tuple(stops.values()), short, ordered)


def is_short(output: ir.Value | None, short: str) -> bool:
    """Whether an output keeps only the tokens that are left."""
    return output is not None and (short == "all" or str(output.name) in short.split(","))


def _joined(first: Mapping[ir.Node | None, frozenset[ir.Value]], second: Restored) -> Restored:
    return {
        reader: first.get(reader, frozenset()) | second.get(reader, frozenset())
        for reader in (*first, *second)
    }


def _across_rows(structure: Structure, flow: Flow) -> list[Blocked]:
    """Nodes that compute over rows which may have chosen other tokens each: they need every position."""
    stopped = {blocked.node for rows in structure.rows for blocked in rows.blocked}
    found = []
    for rows in structure.rows:
        for node, marks in rows.inputs.items():
            lost = node in stopped or not any(rows.marks.get(value) for value in node.outputs)
            if lost and any(marks) and any(flow.inputs.get(node, ())):
                reason = "it computes over rows of tokens, position by position, and each row may have chosen others"
                found.append(Blocked(node, reason, "grid"))
    return found


def _short(value: ir.Value, reader: ir.Node | None, flow: Flow, sites: Sequence[Cut]) -> bool:
    """Whether tokens have left a value as `reader` would see it."""
    cuts = any(site.value is value and site.reaches(reader) for site in sites)
    return cuts or any(mark.stage for mark in flow.marks.get(value, ()))


def _behind(blocked: Blocked, flow: Flow, sites: Sequence[Cut]) -> bool:
    """Whether a reduction lies before what blocked."""
    if blocked.node is None:
        return blocked.output is not None and _short(blocked.output, None, flow, sites)
    return any(mark.stage for marks in flow.inputs[blocked.node] for mark in marks)


def edges(stops: Iterable[Stop], flow: Flow, structure: Structure) -> Restored:
    """Who receives restored tokens so that every stop has them: as far up as nothing on the way leads to a pool as well.

    A pool over tokens counts those that are left by their sizes, whatever else is an output; so nodes in front of it that a stop
    needs too run on both, on the tokens that are left for the pool and on all of them, restored at the tap, for the stop.
    """
    body_values = {value for node in structure.body for value in node.outputs}
    above = _above(((node, output) for node, output in stops), flow, body_values, every=True)
    ends = ((node, None) for node in pools(flow, structure))
    shared = above & _above(ends, flow, body_values, every=False)
    restored: Restored = {}

    def give(reader: ir.Node | None, value: ir.Value) -> None:
        restored[reader] = restored.get(reader, frozenset()) | {value}

    for _, output in stops:
        if output is not None and (output in body_values or output.producer() in shared):
            give(None, output)
    for node in (above | {node for node, _ in stops if node is not None}) - shared:
        for value in streams(node, flow, every=True):
            if value in body_values or value.producer() in shared:
                give(node, value)
    return restored


def _above(
    ends: Iterable[tuple[ir.Node | None, ir.Value | None]],
    flow: Flow,
    body_values: set[ir.Value],
    every: bool,
) -> set[ir.Node]:
    """The nodes behind the last block that lead tokens to these ends, the ends themselves left out."""
    found: set[ir.Node] = set()
    todo: list[ir.Value] = []
    for node, output in ends:
        todo.extend([output] if output is not None else [])
        todo.extend(streams(node, flow, every) if node is not None else [])
    while todo:
        value = todo.pop()
        producer = None if value in body_values else value.producer()
        if producer is not None and producer not in found and producer in flow.inputs:
            found.add(producer)
            todo.extend(streams(producer, flow, every))
    return found


@dataclass(frozen=True)
class Ways:
    """Finds how tokens that come back become what they are to be."""

    structure: Structure
    shapes: Shapes
    flow: Flow
    sites: tuple[Cut, ...]
    drops: tuple[bool, ...]

    @cached_property
    def trunk(self) -> Trunk:
        return Trunk(self.flow)

    def again(self, restored: Restored) -> dict[ir.Value, Way]:
        """The values of the tail that are made once more of restored tokens, and how."""
        body_values = frozenset(value for node in self.structure.body for value in node.outputs)
        wanted = {value for values in restored.values() for value in values} - body_values
        return {value: self.trunk.whole(value, body_values) for value in wanted if value.producer()}

    def carried(self, restored: Restored, again: Mapping[ir.Value, Way]) -> Carried:
        """How the tokens that left for good at each site become those at each tap. Raises: UnsupportedError."""
        found: Carried = {}
        wanted = dict.fromkeys(value for values in restored.values() for value in values)
        taps = dict.fromkeys(
            source for value in wanted for source in (again[value].sources if value in again else (value,))
        )
        for tap in taps:
            for number in self._left(tap):
                cut = self.sites[number - 1]
                if cut.readers is not None or not self.drops[number - 1]:
                    continue  # Back at once, as they were in front of the attention; or as copies of what they were merged into.
                try:
                    found[tap, number] = self.trunk.way(tap, cut)
                except Blocked as blocked:
                    raise UnsupportedError(
                        f"tokens that leave at {cut.value.name!r} have to be there again at {tap.name!r}, but cannot be brought "
                        f"past {blocked.describe()}; reduce only behind that node (--layers, --site), or merge tokens "
                        "(tome), which come back as copies"
                    ) from None
        return found

    def _left(self, value: ir.Value) -> Iterator[int]:
        """The sites at which tokens left that are missing in a value, the last one first."""
        own = next(
            (n for n, cut in enumerate(self.sites, 1) if cut.value is value and cut.readers is None), 0
        )
        stage = own or max((mark.stage for mark in self.flow.marks.get(value, ())), default=0)
        while stage:
            yield stage
            stage = max((mark.stage for mark in self.flow.marks[self.sites[stage - 1].value]), default=0)
