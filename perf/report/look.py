"""Where every patch or word went, site by site, as a reduced model itself tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.graph.interface import KEPT, MAP, at_site
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.workbench import Answer, Workbench, answer
from tokenrt.perf.report.document import Change, Step

Array = np.ndarray[Any, np.dtype[Any]]

DROPPED = -1


def shown(plan: Plan) -> int:
    """The transformer that a report shows: the first that the plan reduces."""
    return next(iter(plan.reduced()), 0)


def free(structure: Structure) -> list[int]:
    """The positions that may leave: cells of the grid, row by row, or words."""
    kept = {*structure.protected}
    return [place for place in range(structure.tokens) if place not in kept]


def steps(plan: Plan) -> list[Step]:
    """Tokens before and behind each site of the transformer that is shown, and of the outputs."""
    number = shown(plan)
    inside = [
        Step(site.block, before, site.tokens, site.method or plan.method)
        for site, before in zip(plan.sites, plan.arriving(), strict=True)
        if site.transformer == number
    ]
    return inside + [Step(plan.blocks, each.arriving, each.tokens, each.method) for each in plan.outputs]


def look(bench: Workbench, plan: Plan, runs: Sequence[Feed], most: int) -> list[tuple[Change, ...]]:
    """What became of the first `most` samples under a plan: what changed behind each of its sites.

    Returns: nothing where the reduced model does not tell it, or not sample by sample. Raises: TokenrtError, as `reduce` does.
    """
    structure = bench.reducer.prepared.transformers[shown(plan)]
    model = bench.reducer.reduce(plan, source_map="every" if plan.sites and not plan.outputs else False).model
    session = bench.session(model)
    found: list[tuple[Change, ...]] = []
    for run in runs:
        seen = read(plan, structure, answer(session, run))
        if len(seen) != len(next(iter(run.values()))):
            return []
        found += seen
    return found[:most]


def read(plan: Plan, structure: Structure, told: Answer) -> list[tuple[Change, ...]]:
    """What became of each sample of a run. told: its outputs by name, with the maps behind every site where it has them."""
    cells = free(structure)
    maps = [(block, name) for block, name in _maps(plan, len(cells)) if name in told]
    return [
        tuple(
            changes([(block, _labels(told[name][sample], name, cells)) for block, name in maps], len(cells))
        )
        for sample in range(len(told[maps[0][1]]) if maps else 0)
    ]


def changes(maps: Sequence[tuple[int, Array]], cells: int) -> Iterator[Change]:
    """What each map [cells] changes. maps: of each block the token behind it that a cell lives in, by any numbers; -1: none."""
    before = np.arange(cells)
    for block, tokens in maps:
        after = first(tokens)
        (changed,) = np.nonzero(after != before)
        yield Change(block, tuple(changed.tolist()), tuple(after[changed].tolist()))
        before = after


def first(tokens: Array) -> Array:
    """The same map with each token numbered as its first cell."""
    made = np.full(len(tokens), DROPPED)
    numbers, where, back = np.unique(tokens, return_index=True, return_inverse=True)
    own = np.where(numbers < 0, DROPPED, where)
    made[:] = own[back]
    return made


def _maps(plan: Plan, cells: int) -> list[tuple[int, str]]:
    """The blocks behind which tokens leave, and the outputs that may tell where each is then."""
    number = shown(plan)
    name = f"{MAP}_{number}" if number else MAP
    if plan.outputs:
        alone = not plan.sites and plan.outputs[0].arriving == cells
        return [(plan.blocks, KEPT), (plan.blocks, MAP)] if alone else []
    own = [site for site in plan.sites if site.transformer == number]
    return [
        (site.block, at_site(name, place) if place < len(own) - 1 else name) for place, site in enumerate(own)
    ]


def _labels(answer: Array, name: str, cells: Sequence[int]) -> Array:
    """The token of each cell, by any numbers; -1 where it was dropped."""
    if name != KEPT:
        return answer[cells] if len(answer) > len(cells) else answer
    made = np.full(len(cells), DROPPED)
    made[answer] = answer
    return made
