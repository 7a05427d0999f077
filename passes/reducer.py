"""A model prepared once, of which any number of plans are made and applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenrt.passes.analysis.prepare import Prepared, Protect, ShapeOption, prepare
from tokenrt.passes.graph.model import ModelLike
from tokenrt.passes.planning import fit
from tokenrt.passes.planning.outputs import cache_fit as at_cache
from tokenrt.passes.planning.outputs import fit as at_output
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.planning.pools import told
from tokenrt.passes.planning.request import Request
from tokenrt.passes.report import Reduced, Report, SiteReport, restorations, site_reports
from tokenrt.passes.rewriting.outputs import entries, outlet, unread
from tokenrt.passes.rewriting.whole import marked, rewrite, whole_step

NOTHING_MORE = Request()


@dataclass(frozen=True)
class Reducer:
    """A prepared model. Plans are applied to copies of it, which share its weights; each copy is proven as `reduce` proves it.

    Preparing takes most of the time of a reduction: reading, folding and analysing. A copy, its rewrite and its proof take
    a tenth of that.
    """

    prepared: Prepared

    @classmethod
    def of(cls, model: ModelLike, shape: ShapeOption = None, protect: Protect = None) -> Reducer:
        """Raises: ModelError, ShapeError, PlanError."""
        return cls(prepare(model, shape, protect))

    @classmethod
    def to_plan(cls, model: ModelLike, method: str, asked: Request) -> Reducer:
        """The model prepared for what is asked, whose `shape` may name inputs too that the model gains. Raises: TokenrtError."""
        if at_cache.meant(asked.site, method):
            asked.at_a_cache()
            return cls.of(model, asked.shape)
        if at_output.named(asked.site) is None:
            asked.inside()
            return cls.of(model, asked.shape, asked.kept)
        asked.at_an_output()
        return cls.of(model, at_output.split(asked.shape, method)[0])

    def plan(self, method: str, budget: Budget, asked: Request = NOTHING_MORE) -> Plan:
        """A budget as integer token counts. Raises: PlanError, MethodError, NothingToDoError."""
        if at_cache.meant(asked.site, method):
            asked.at_a_cache()
            return at_cache.make(self._protecting(""), method, budget, asked)
        output = at_output.named(asked.site)
        if output is None:
            asked.inside()
            return fit.make(self._protecting(asked.kept), method, budget, asked)
        asked.at_an_output()
        gained = at_output.split(asked.shape, method)[1]
        return at_output.make(self._protecting(""), method, budget, output, asked, gained)

    def counted(self, plan: Plan) -> Plan:
        """A plan of sites in blocks, perhaps edited, checked against the model, its work filled in. Raises: TokenrtError."""
        prepared = self._protecting(plan.wanted)
        return fit.with_cost(prepared, fit.checked(plan, prepared, False))[0]

    def reduce(
        self, plan: Plan, *, source_map: bool | Literal["every"] = False, allow_noop: bool = False
    ) -> Reduced:
        """Check a plan, perhaps edited, against the model, apply it and prove the result.

        The sites of the blocks come first, then one output after the other, each on what the one before has made,
        and the caches last. source_map: as for `tokenrt.reduce`; "every" adds those behind all sites.
        Raises: TokenrtError.
        """
        prepared, sites, restored = (
            self.prepared.again(plan.wanted),
            tuple[SiteReport, ...](),
            tuple[str, ...](),
        )
        pools: list[str] = []
        dense = None
        if plan.sites or not plan.behind:
            plan = fit.checked(plan, prepared, allow_noop)
            plan, routes = fit.with_cost(prepared, plan, allow_noop=allow_noop)
            sites, restored = site_reports(prepared, plan), restorations(routes)
            for number, path in routes.items():
                pools += told(path.flow, prepared.transformers[number])
            dense = whole_step(prepared, plan, routes)
            rewritten = rewrite(prepared, plan, routes, source_map)
        else:
            rewritten = marked(prepared, plan)
        for number, site in enumerate(plan.outputs):
            if number or plan.sites:
                prepared = prepare(rewritten)
            rewritten = outlet.rewrite(prepared, plan, site)
            sites = (*sites, SiteReport(-1, f"output {site.output}", "applied", site.arriving, site.tokens))
        if plan.entries:
            prepared = prepare(rewritten) if plan.sites or plan.outputs else prepared
            rewritten = entries.rewrite(prepared, plan)
        for each in plan.entries:
            sites = (
                *sites,
                SiteReport(-1, f"cache of layer {each.layer}", "applied", each.arriving, each.tokens),
            )
        dropped = unread.drop(rewritten, plan)
        return Reduced(rewritten, plan, Report(sites, restored, 0.0, tuple(pools), dropped), dense)

    def _protecting(self, kept: str) -> Prepared:
        return self.prepared if kept == self.prepared.protect else self.prepared.again(kept)
