"""What a plan costs on a target, as a table and as a document; every number of it is a model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenrt.passes.planning.plan import Plan, PlannedSite

UNMEASURED = "model, unmeasured"


@dataclass(frozen=True)
class SiteCost:
    """Launches that a site adds, in the form of functions and by plugin (None: the target takes none), and seconds."""

    site: PlannedSite
    arriving: int
    functions: int
    plugins: int | None = None
    functions_seconds: float | None = None
    plugins_seconds: float | None = None


@dataclass(frozen=True)
class Times:
    """Seconds of the model before the reduction, and behind it in both forms."""

    before: float
    functions: float
    plugins: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return {
            "before_us": _us(self.before),
            "functions_us": _us(self.functions),
            "plugins_us": _us(self.plugins),
        }

    def verdict(self, batch: int) -> str:
        """Whether the reduction pays, in a line."""
        forms = {"as functions": self.functions, "by plugin": self.plugins}
        told = ", ".join(f"{_us(time):.0f} us {form}" for form, time in forms.items() if time is not None)
        best = min(time for time in forms.values() if time is not None)
        pays = f"{self.before / best:.2f} times as fast at best" if best < self.before else "it does not pay"
        return f"time at batch {batch}: {_us(self.before):.0f} us before, {told}: {pays}"


@dataclass(frozen=True)
class PlanCost:
    """A plan, and what it costs on a target for `batch` images; launches: of the model without reductions."""

    plan: Plan
    target: str
    batch: int
    sites: tuple[SiteCost, ...] = ()
    launches: int | None = None
    times: Times | None = None
    notes: tuple[str, ...] = ()

    def told(self, note: str) -> PlanCost:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

    @property
    def functions(self) -> int:
        return sum(site.functions for site in self.sites)

    @property
    def plugins(self) -> int | None:
        counts = [site.plugins for site in self.sites if site.plugins is not None]
        return sum(counts) if counts else None

    def as_dict(self) -> dict[str, Any]:
        cost = {
            "target": self.target,
            "batch": self.batch,
            "evidence": UNMEASURED,
            "launches": {"model": self.launches, "functions": self.functions, "plugins": self.plugins},
            "times": None if self.times is None else self.times.as_dict(),
            "sites": [
                {
                    "transformer": each.site.transformer,
                    "block": each.site.block,
                    "functions": each.functions,
                    "plugins": each.plugins,
                    "functions_us": _us(each.functions_seconds),
                    "plugins_us": _us(each.plugins_seconds),
                }
                for each in self.sites
            ],
            "notes": list(self.notes),
        }
        return {**self.plan.as_dict(), "cost": cost}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"cost on {self.target}, batch {self.batch}: {UNMEASURED}")
        for name in (
            "block",
            "tokens",
            "launches as functions",
            "by plugin",
            "us as functions",
            "us by plugin",
        ):
            table.add_column(name, justify="right")
        several = bool(self.plan.others)
        for each in self.sites:
            where = f"{each.site.transformer}/{each.site.block}" if several else str(each.site.block)
            numbers = (each.functions, each.plugins, _us(each.functions_seconds), _us(each.plugins_seconds))
            table.add_row(
                where,
                f"{each.arriving} to {each.site.tokens}",
                *("-" if n is None else str(n) for n in numbers),
            )
        shown = [table] if self.sites else []
        return Group(self.plan, *shown, *map(escape, self._lines()))

    def _lines(self) -> Iterator[str]:
        if self.sites:
            plugins = "" if self.plugins is None else f", {self.plugins} by plugin"
            yield (
                f"launches: the model has about {self.launches}, the reductions add {self.functions} as functions{plugins} "
                f"({UNMEASURED})"
            )
        if self.times is not None:
            yield f"{self.times.verdict(self.batch)} ({UNMEASURED})"
        odd = [str(each.site.tokens) for each in self.sites if each.site.tokens % 8]
        if odd:
            yield f"note: {', '.join(odd[:4])} tokens are no multiple of 8, which GPUs pad to: --multiple-of 8"
        yield from (f"note: {note}" for note in self.notes)


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e6 * seconds, 1)
