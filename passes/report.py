"""What a reduction gives: the model, its plan, and what became of every candidate site."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.planning.plan import Plan, places
from tokenrt.passes.planning.route import closed
from tokenrt.passes.planning.several import Routes

NOT_PLANNED = "the plan removes nothing here"


@dataclass(frozen=True)
class SiteReport:
    """What became of one candidate site: applied, or refused with a reason.

    block is -1 for an attention that is no block; where then names it. transformer: which one, where there are several.
    """

    block: int
    where: str
    status: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    reason: str = ""
    transformer: int | None = None

    def place(self) -> str:
        several = "" if self.transformer is None else f"transformer {self.transformer} "
        return f"{several}block {self.block} {self.where}" if self.block >= 0 else self.where

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if value not in (None, "")}


@dataclass(frozen=True)
class Report:
    """Every candidate site, applied or refused with a reason, where tokens are restored, and what each pool counts.

    dropped: outputs that only a method was to read, see `unread`.
    """

    sites: tuple[SiteReport, ...]
    restored: tuple[str, ...]
    seconds: float
    pools: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "sites": [site.as_dict() for site in self.sites],
            "restored": list(self.restored),
            "pools": list(self.pools),
            "dropped": list(self.dropped),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Reduced:
    """A reduced model, the plan it follows, and the report on its sites.

    dense: where tokens rest from one step to the next, the model of a step at which none rests.
    """

    model: ir.Model
    plan: Plan
    report: Report
    dense: ir.Model | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.as_dict(), **self.report.as_dict()}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.markup import escape

        refused = [s for s in self.report.sites if s.status == "refused" and s.reason != NOT_PLANNED]
        lines = [f"refused: {site.place()}: {site.reason}" for site in refused]
        lines += [f"restored: {text}" for text in self.report.restored]
        lines += [f"pooled: {text}" for text in self.report.pools]
        lines += [
            f"dropped: output {name}, which export kept for a method to read" for name in self.report.dropped
        ]
        if self.dense is not None:
            lines.append(
                "steps at which no token rests, the first one: a model of their own, R.dense.onnx beside R.onnx"
            )
        return Group(self.plan, *(escape(line) for line in lines))


def site_reports(prepared: Prepared, plan: Plan) -> tuple[SiteReport, ...]:
    """Every candidate site: applied, or refused because of the plan or of the model."""
    applied = {
        (site.transformer, site.block, site.where): (before, site.tokens)
        for site, before in zip(plan.sites, plan.arriving(), strict=True)
    }
    reports = []
    for number, structure in enumerate(prepared.transformers):
        own = plan.of(number)
        method = own.at(next(iter(own.sites), None))
        which = number if len(prepared.transformers) > 1 else None
        for block, where in itertools.product(structure.blocks, places(own.returns)):
            made = applied.get((number, block.index, where))
            if made is not None:
                reports.append(SiteReport(block.index, where, "applied", *made, transformer=which))
                continue
            reason = closed(block, where, method) or NOT_PLANNED
            reports.append(SiteReport(block.index, where, "refused", reason=reason, transformer=which))
    parts = [plan.of(number) for number in plan.reduced()]
    ordered = all(part.at(site).keeps_order for part in parts for site in part.sites)
    for refusal in prepared.refusals:
        if refusal.merging and ordered:
            continue
        reports.append(SiteReport(-1, refusal.where, "refused", reason=refusal.reason))
    return tuple(reports)


def restorations(routes: Routes) -> tuple[str, ...]:
    """Where all tokens are there again: a line for each tensor and reader."""
    lines: list[str] = []
    for reader, values in itertools.chain.from_iterable(path.restored.items() for path in routes.values()):
        whom = f"{reader.op_type} node {reader.name!r}" if reader is not None else "the model's output"
        lines.extend(
            f"{value.name} before {whom}" for value in sorted(values, key=lambda value: str(value.name))
        )
    return tuple(dict.fromkeys(lines))
