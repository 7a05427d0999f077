"""Tokens that leave in whole units: where outputs that stay short have one row for each k x k tokens, as behind a merger.

A tower whose merger lays U tokens that follow each other side by side, [N,C] as [N/U, U*C], can hand on fewer rows only
where no unit loses a part of its tokens. A method then chooses among units; what it reads of them, `rewriting/units.py` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import onnx_ir as ir

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.flow import follow
from tokenrt.passes.analysis.marks import ANY
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.route import is_short


def unit(graph: ir.Graph, shapes: Shapes, structure: Structure, short: str) -> int:
    """U where the outputs that stay short need whole units of U tokens; 1 where tokens may leave one by one."""
    found = rows(graph, shapes, structure) if short else {}
    return lcm(*(size for output, size in found.items() if is_short(output, short)))


def rows(graph: ir.Graph, shapes: Shapes, structure: Structure) -> dict[ir.Value, int]:
    """The outputs that count the transformer's tokens, and of how many tokens each of their rows is."""
    flow = follow(
        graph,
        shapes,
        structure.origins,
        tokens=structure.tokens,
        protected=structure.protected,
        unit=ANY,
    )
    marked = {output: flow.marks.get(output, ()) for output in graph.outputs}
    return {output: lcm(*(mark.unit for mark in marks)) for output, marks in marked.items() if marks}


def check_whole(protected: Sequence[int], size: int) -> None:
    """Whether the tokens that never leave are whole units. Raises: PlanError naming one that is broken."""
    kept = set(protected)
    for first in sorted({token // size * size for token in protected}):
        missing = [token for token in range(first, first + size) if token not in kept]
        if missing:
            there = next(token for token in range(first, first + size) if token in kept)
            raise PlanError(
                f"a merge unit would be broken: of tokens {first} to {first + size - 1}, which become one row, token {there} "
                f"never leaves and token {missing[0]} may; protect all of them, as in --protect {first}:{first + size}, or begin "
                f"and end --span at multiples of {size}"
            )


def whole(method: Method, size: int) -> Method:
    """The method as it counts where tokens leave in whole units of `size`."""
    return method if size == 1 else InUnits.of(method, size)


@dataclass(frozen=True)
class InUnits(Method):
    """What a plan asks of a method, in numbers of tokens that are whole units: it does to units what it else does to tokens."""

    method: Method
    size: int

    @classmethod
    def of(cls, method: Method, size: int) -> InUnits:
        """Raises: PlanError where the method knows single tokens only."""
        if method.needs:
            raise PlanError(
                f"{method.name} was trained on single tokens, and here they leave in whole merge units of {size}: use a method "
                "without weights, e.g. topk or divprune, or drop --short so that all tokens come back in front of the merger"
            )
        made = cls(method, size)
        for name in ("name", "merges", "drops", "joins", "reads", "returns"):
            object.__setattr__(made, name, getattr(method, name))
        return made

    def options(self) -> dict[str, Any]:
        return self.method.options()

    def fewest(self, tokens: int, protect: int) -> int:
        return self.size * self.method.fewest(tokens // self.size, protect // self.size)

    def after_keeping(self, kept: int, protect: int) -> int:
        return self.size * self.method.after_keeping(-(-kept // self.size), protect // self.size)

    @property
    def unit(self) -> int:
        return self.size * self.method.unit


def fitting(method: Method, wanted: int, tokens: int, protect: int) -> int:
    """The nearest count that a method of whole units can leave, of two as near the larger; any other leaves what is wanted."""
    if not isinstance(method, InUnits) or wanted >= tokens:
        return wanted
    return method.nearest(wanted, tokens, protect, method.size) or tokens


def check_units(method: Method, block: int, tokens: int, keep: int, protect: int) -> None:
    """Whether what stays is whole units. Raises: PlanError with the nearest count."""
    if isinstance(method, InUnits) and (tokens - keep) % method.unit:
        near = method.nearest(keep, tokens, protect, method.size)
        raise PlanError(
            f"block {block}: {keep} of {tokens} tokens cannot stay: they leave in whole merge units of {method.size}, since an "
            f"output that stays short has one row for each; {near} is the nearest count"
        )
