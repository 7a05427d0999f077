"""What a plan costs, and whether it is worth anything: some token leaves, and work is saved."""

from __future__ import annotations

from dataclasses import replace

from tokenrt.errors import NothingToDoError
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.several import Routes
from tokenrt.passes.planning.work import Work


def shortening(plan: Plan) -> Plan:
    """The plan without the sites at which no token leaves."""
    pairs = zip(plan.sites, plan.arriving(), strict=True)
    return replace(plan, sites=tuple(site for site, before in pairs if site.tokens < before))


def not_empty(prepared: Prepared, plan: Plan, allow_noop: bool) -> Plan:
    if not plan.sites and not allow_noop:
        multiples = f" with counts in multiples of {plan.multiple_of}" if plan.multiple_of > 1 else ""
        together = sorted({each.unit for each in plan.transformers} - {1})
        multiples += f" in whole merge units of {together[0]}" if together else ""
        raise NothingToDoError(
            f"the budget removes no token at any block{multiples}; ask for more, or pass --allow-noop to write the model "
            "unchanged" + list_refusals(prepared)
        )
    return plan


def with_cost(prepared: Prepared, plan: Plan, allow_noop: bool = False) -> tuple[Plan, Routes]:
    """The plan with its work filled in, and the routes of the tokens of every transformer that has sites."""
    work = Work.of(prepared, plan)
    after = work.macs(plan)
    if plan.sites and after >= work.full:
        if allow_noop:
            return with_cost(prepared, replace(plan, sites=()))
        readers = [
            "an output" if node is None else f"{node.op_type} node {node.name!r}"
            for path in work.routes.values()
            for node in path.restored
        ]
        blocks = sum(len(structure.blocks) for structure in prepared.transformers)
        needed = (
            f"every token is needed again by {' and '.join(readers)}"
            if readers
            else "no product reads tokens"
        )
        raise NothingToDoError(
            f"the reduction saves no work: of {prepared.candidates()} attentions {blocks} can take one, and "
            f"right behind it {needed}" + list_refusals(prepared)
        )
    return replace(plan, macs_before=work.full, macs_after=after), work.routes


def list_refusals(prepared: Prepared) -> str:
    refusals = prepared.refusals
    return "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in refusals[:8]) + (
        f"\n  and {len(refusals) - 8} more (tokenrt inspect lists all)" if len(refusals) > 8 else ""
    )
