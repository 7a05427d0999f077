"""What plans are compared by: their cost as a share of the unreduced model's, counted, modelled or measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.planner.latency.modelled import Modelled as Time
from tokenrt.perf.planner.latency.modelled import modelled
from tokenrt.perf.planner.latency.table import Table
from tokenrt.targets.profiles.profile import Target

PLAIN = "slice"


class Meter(Protocol):
    """The cost of any plan of one model."""

    @property
    def told(self) -> str:
        """What is counted, and how well it is known."""

    @property
    def milliseconds(self) -> float | None:
        """The unreduced model's, where it is time that is counted."""

    def ratio(self, plan: Plan) -> float:
        """The plan's cost as a share of the unreduced model's, perhaps estimated. Raises: TokenrtError where none is known."""

    def exact(self, plan: Plan) -> float:
        """The same as well as it can be known: what a plan is held to."""

    def shorter(self, plan: Plan) -> float:
        """The share without what the sites themselves cost."""

    def site(self, plan: Plan) -> float:
        """About what one site of the plan's method costs, as a share of the unreduced model."""

    def why(self, plan: Plan) -> str:
        """What the plan's cost is made of, where it is more than work."""


@dataclass(frozen=True)
class Counted:
    """Multiply-accumulates, exactly."""

    told: str = "multiply-accumulates, counted"
    milliseconds: float | None = None

    def ratio(self, plan: Plan) -> float:
        return plan.macs_after / plan.macs_before if plan.macs_before else 1.0

    exact = shorter = ratio

    def site(self, plan: Plan) -> float:
        return 0.0

    def why(self, plan: Plan) -> str:
        return f"{plan.macs_after / 1e9:.3g} of {plan.macs_before / 1e9:.3g} GMACs are left"


@dataclass(frozen=True)
class Swept:
    """Time as a table of measurements predicts it."""

    table: Table

    @property
    def told(self) -> str:
        own = self.table
        return (
            f"time on {own.target} ({own.machine}, {own.threads} threads) at batch {own.batch}, predicted from measured blocks "
            f"within {own.error:.1%}, nine in ten"
        )

    @property
    def milliseconds(self) -> float | None:
        return self.table.milliseconds

    def ratio(self, plan: Plan) -> float:
        return self.table.predict(plan).ratio

    exact = ratio

    def shorter(self, plan: Plan) -> float:
        """That of a plan which leaves as many tokens away and computes nothing for it."""
        sites = tuple(replace(site, method="", options={}) for site in plan.sites)
        return self.ratio(replace(plan, method=PLAIN, options={}, sites=sites, proportional_attention=False))

    def site(self, plan: Plan) -> float:
        return (self.ratio(plan) - self.shorter(plan)) / len(plan.sites)

    def why(self, plan: Plan) -> str:
        gone, own = 1 - self.shorter(plan), self.ratio(plan) - self.shorter(plan)
        return f"shorter blocks save {gone:.1%} of the time, and choosing what leaves costs {own:.1%}"


@dataclass(frozen=True)
class Modelled:
    """Time on a GPU by the model of its cost: launches, waves of tiles and bytes; nothing is measured.

    Estimated is without steps: launches stay, the rest falls with the work, and a site costs what those of its method cost in the
    first plan that was counted.
    """

    reducer: Reducer
    target: Target
    batch: int
    known: dict[str, Time] = field(default_factory=dict)
    sites: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> str:
        return f"time on {self.target.name} at batch {self.batch}, by a model, unmeasured"

    @property
    def milliseconds(self) -> float | None:
        return self._any().before * 1e3 if self.known else None

    def ratio(self, plan: Plan) -> float:
        names = [site.method or plan.method for site in plan.sites]
        if not set(names) <= {*self.sites}:
            if len(set(names)) > 1:
                return self.exact(plan)
            self.sites[names[0]] = (self.exact(plan) - self.shorter(plan)) / len(names)
        return self.shorter(plan) + sum(self.sites[name] for name in names)

    def exact(self, plan: Plan) -> float:
        return self.time(plan).ratio

    def shorter(self, plan: Plan) -> float:
        time = self._any() if self.known else self.time(plan)
        launched = time.launches * Chip.of(self.target).launch / time.before
        return launched + (1 - launched) * plan.macs_after / plan.macs_before

    def site(self, plan: Plan) -> float:
        self.ratio(plan)
        return self.sites[plan.method]

    def why(self, plan: Plan) -> str:
        time = self.time(plan)
        return (
            f"{time.added} launches more than the {time.launches} there are, {time.before * 1e6:.0f} us become "
            f"{time.after * 1e6:.0f}, and without what choosing costs it were {self.shorter(plan) * time.before * 1e6:.0f}"
        )

    def time(self, plan: Plan) -> Time:
        """Raises: TokenrtError where the target's profile lacks what the model of cost needs."""
        key = plan.spec()
        if key not in self.known:
            self.known[key] = modelled(self.reducer, plan, self.target, batch=self.batch)
        return self.known[key]

    def _any(self) -> Time:
        return next(iter(self.known.values()))
