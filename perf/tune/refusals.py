"""Which methods a model takes at all, and why it takes no other."""

from __future__ import annotations

from collections.abc import Sequence

from tokenrt.errors import NothingToDoError, TokenrtError
from tokenrt.passes.planning.request import Request
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.tune.families import FAMILIES


def refused(reducer: Reducer, names: Sequence[str], asked: Request) -> dict[str, str]:
    """The methods of which no rule makes a plan, mild, in between or strong, each with the reason.

    Raises: NothingToDoError with all reasons where that is every method.
    """
    found = {name: why for name in names if (why := _why(reducer, name, asked))}
    if len(found) < len(names):
        return {name: why.splitlines()[0] for name, why in found.items()}
    reasons = {*found.values()}
    if len(reasons) == 1:
        raise NothingToDoError(reasons.pop())
    listed = "".join(f"\n  {name}: {why}" for name, why in found.items())
    raise NothingToDoError(f"no method that competes can reduce this model:{listed}")


def _why(reducer: Reducer, name: str, asked: Request) -> str:
    """Why a method makes no plan, by the first rule; nothing where it makes one."""
    structure, first = reducer.prepared.structure, ""
    for rule in FAMILIES.values():
        budgets = rule(structure.tokens, len(structure.blocks))
        for budget in (budgets[0], budgets[len(budgets) // 2], budgets[-1]):
            try:
                reducer.plan(name, budget, asked)
            except TokenrtError as error:
                first = first or str(error)
            else:
                return ""
    return first
