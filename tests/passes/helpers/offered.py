"""What `inspect` offers against what `reduce` with slice takes, site by site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnxruntime

from tests.passes.helpers.running import session
from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.graph.model import ModelLike
from tokenrt.passes.inspect import Inspection, inspect
from tokenrt.passes.offers import SliceAround
from tokenrt.passes.planning.plan import Budget, Where, places
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

AWAY = places("never")
"""Where slice itself sits."""

Site = tuple[int, int, Where]
"""(transformer, block, where)"""


def sites(found: Inspection, wheres: tuple[Where, ...] = AWAY) -> list[tuple[Site, bool]]:
    """Every site of every block at these places, and whether it is offered."""
    return [
        ((number, block.index, where), where in block.sites)
        for number, transformer in enumerate(found.transformers)
        for block in transformer.blocks
        for where in wheres
    ]


def taken(model: ModelLike, site: Site, shape: Any = None) -> Reduced | TokenrtError:
    """What `reduce` says to one token less at one site."""
    number, block, where = site
    method = "slice" if where in AWAY else SliceAround.name
    asked: dict[str, Any] = {"site": where, "transformers": [number], "shape": shape}
    with methods.also(SliceAround):
        try:
            return reduce(model, method=method, budget=Budget.remove(1, [block]), **asked)
        except TokenrtError as error:
            return error


def disagreements(
    model: ModelLike, shape: Any = None, *, wheres: tuple[Where, ...] = AWAY, one: int | None = None
) -> list[str]:
    """Sites that are offered and refused, or taken and not offered; and restored outputs of which the two tell differently.

    one: try one site alone, by its number.
    """
    found = inspect(model, shape=shape)
    every = sites(found, wheres)
    if not every:
        made = taken(model, (0, 0, "after-attention"), shape)
        return [] if isinstance(made, TokenrtError) else ["no block is offered, and reduce takes one"]
    tried = every if one is None or not every else [every[one % len(every)]]
    return [text for site, offered in tried for text in _at(model, shape, found, site, offered)]


def _at(model: ModelLike, shape: Any, found: Inspection, site: Site, offered: bool) -> Iterator[str]:
    number, block, where = site
    made, view = taken(model, site, shape), found.transformers[number]
    if isinstance(made, TokenrtError) == offered:
        told = made if isinstance(made, TokenrtError) else view.blocks[block].refused
        yield f"{site}: {'offered' if offered else 'not offered'}, and reduce: {told}"
    elif isinstance(made, TokenrtError):
        reason = view.blocks[block].refused[where]
        if str(made).splitlines()[0] != reason and where != "around-attention":
            yield f"{site}: inspect gives the reason {reason!r}, reduce {str(made)!r}"
    elif site == _first(found, number):
        yield from _restored(made, view.restored, view.follows)


def _first(found: Inspection, number: int) -> Site | None:
    """The first site of a transformer at which tokens can stay away, of which inspect tells what is restored."""
    return next((site for site, offered in sites(found) if offered and site[0] == number), None)


def _restored(made: Reduced, restored: tuple[str, ...], follows: tuple[str, ...]) -> Iterator[str]:
    if made.report.restored != restored:
        yield f"inspect says that {restored} are restored, reduce {made.report.restored}"
    run = session(made.model)
    for output in run.get_outputs():
        if any(f"output {output.name!r} has one entry per token" in text for text in follows):
            yield from _whole(made, output)


def _whole(made: Reduced, output: onnxruntime.NodeArg) -> Iterator[str]:
    if not any(size >= made.plan.tokens for size in output.shape if isinstance(size, int)):
        yield f"output {output.name!r} {output.shape} is said to be restored"
