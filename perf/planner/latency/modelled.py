"""The time of a plan on a GPU that is not here, as the model of cost has it: launches, waves of tiles, and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TargetError
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.report import UNMEASURED
from tokenrt.perf.cost.sites import cost_in
from tokenrt.perf.cost.steps import products
from tokenrt.perf.planner.latency.parts import parts_of
from tokenrt.perf.planner.opened import Opened
from tokenrt.perf.profile.groups import grouped, of_the_reduction
from tokenrt.targets.profiles.profile import Target


@dataclass(frozen=True)
class Modelled:
    """Seconds of a batch before and behind the reduction, and the launches it adds. No GPU has confirmed any of it."""

    target: str
    batch: int
    before: float
    after: float
    launches: int
    added: int

    @property
    def ratio(self) -> float:
        """Time as a share of the unreduced model's."""
        return self.after / self.before

    @property
    def pays(self) -> bool:
        return self.after < self.before

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "ratio": self.ratio, "evidence": UNMEASURED}


def modelled(reducer: Reducer, plan: Plan, target: Target, *, batch: int = 1) -> Modelled:
    """The time of a plan in the faster of its forms, functions or plugins.

    Time has steps in the token count: a wave of tiles takes as long whether it is full or not. Raises: TargetError for a target
    whose launches or time are not modelled, TokenrtError for a plan that does not fit.
    """
    chip, cost = Chip.of(target), cost_in(reducer, plan, target, batch=batch)
    if plan.sites and (cost.launches is None or cost.times is None):
        raise TargetError(f"the time of this plan on {target.name} is not modelled: {'; '.join(cost.notes)}")
    known = parts_of(reducer.prepared)
    before = _products(reducer.prepared.model, known, chip, batch)
    launches = cost.launches or 0
    around = launches * chip.launch
    if cost.times is None:
        return Modelled(target.name, batch, before + around, before + around, launches, 0)
    forms = [(sum(site.functions_seconds or 0.0 for site in cost.sites), cost.functions)]
    if cost.times.plugins is not None and cost.plugins is not None:
        forms.append((sum(site.plugins_seconds or 0.0 for site in cost.sites), cost.plugins))
    seconds, added = min(forms)
    after = _products(reducer.reduce(plan).model, known, chip, batch)
    return Modelled(target.name, batch, before + around, after + around + seconds, launches, added)


def _products(model: ir.Model, known: dict[str, str], chip: Chip, batch: int) -> float:
    """Seconds of the products of a model, but for those of reductions."""
    opened = Opened.of(model)
    groups = grouped(opened.model, known)
    own = (node for node in opened.graph if not of_the_reduction(groups[node]))
    return sum(each.seconds(chip) for node in own for each in products(node, opened.shapes, batch))
