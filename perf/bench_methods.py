"""What each method costs beside what it removes: DeiT-S at batch 8, against `slice` with the same token counts.

The cost is the time above the floor as a share of the unreduced model's time. Merging methods remove 13 tokens at every
block, as ToMe does; the others keep 0.7 of the tokens at blocks 3, 6 and 9, as EViT does.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.catalog import FAMILIES
from tokenrt.passes.plan import Budget, Plan
from tokenrt.perf import results, timing
from tokenrt.perf.bench_models import DEIT_S, exported
from tokenrt.perf.journal import Journal, digest

if TYPE_CHECKING:
    from rich.table import Table

EVERY_BLOCK, THREE_STAGES = Budget.remove(13), Budget.keep(0.7, [3, 6, 9])
BUDGETS: dict[str, tuple[str, Budget]] = {
    "merging": ("--remove 13", EVERY_BLOCK),
    "pruning": ("--keep 0.7 --layers 3,6,9", THREE_STAGES),
    "clustering": ("--keep 0.7 --layers 3,6,9", THREE_STAGES),
}
"""Family -> the budget its methods are measured at; families without one are not one-shot on still pictures."""

MOST = 0.05
BATCH, ROUNDS, REPEATS = 8, 4, 3

_WHOLE = "it compares whole tokens, C wide, where ToMe compares mean keys, D wide"
REASONS: Mapping[str, str] = {
    "algm": f"{_WHOLE}, here at every block and as published at two",
    "mctf": (
        f"{_WHOLE}; it needs what every token receives, an N x N attention once more beside the model's; and roots of an "
        "N/2 x N/2 matrix of criteria"
    ),
    "ltmp": "it needs what every token receives, an N x N attention once more beside the model's, and cuts twice at a block",
    "tofu": "behind the middle block it takes norms of all tokens and the largest of each group beside the mean",
    "atc": "clusters merge one after the other, N - K turns of a loop",
}
"""What methods that cost more than MOST compute beyond the others."""


@dataclass(frozen=True)
class Cost:
    """One method: time above the floor in units of the unreduced model's, or why there is none."""

    method: str
    family: str
    budget: str
    share: float | None
    ratio: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        found = {"method": self.method, "family": self.family, "budget": self.budget}
        if self.share is None or self.ratio is None:
            return {**found, "reason": self.reason}
        return {**found, "share_of_unreduced": round(self.share, 4), "times_slice": round(self.ratio, 4)}


@dataclass(frozen=True)
class MethodCosts:
    """The costs of all methods."""

    costs: Sequence[Cost]
    threads: int

    def as_dict(self) -> dict[str, Any]:
        told = {"model": DEIT_S, "batch": BATCH, "threads": self.threads, "at_most": MOST}
        return {**told, "costs": [cost.as_dict() for cost in self.costs]}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"DeiT-S, batch {BATCH}, ONNX Runtime CPU, {self.threads} threads")
        for head in HEAD:
            table.add_column(head.removesuffix(":"), justify="right" if head.endswith(":") else "left")
        for cost in self.costs:
            table.add_row(*_cells(cost))
        return table

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        above = [cost.method for cost in self.costs if cost.share is not None and cost.share > MOST]
        parts = [
            "# What each method costs",
            f"DeiT-S (random weights, 224 px), batch {BATCH}, ONNX Runtime CPU, {self.threads} threads: the time above `slice` "
            "with the same token counts, as a share of the unreduced model's time. Medians of paired runs in one process, with "
            f"the sessions made anew {REPEATS} times. Made by `python -m tokenrt.perf.bench methods`.",
            results.table(HEAD, [_cells(cost) for cost in self.costs]),
            f"Above {MOST:.0%}: " + (", ".join(f"`{name}`" for name in above) or "none") + ".",
            "\n".join(f"- `{name}`: {REASONS[name]}." for name in above if name in REASONS),
        ]
        return "\n\n".join(part for part in [*parts, results.told(where)] if part)


HEAD = ("method", "family", "budget", "share of the unreduced time:", "times `slice`:")


def run(names: Sequence[str] | None = None) -> MethodCosts:
    """Time every method that needs no trained weights. Raises: TokenrtError when the model cannot be exported."""
    from tokenrt.passes.reduce import reduce

    source, threads, costs = exported(DEIT_S), timing.default_threads(), list[Cost]()
    with tempfile.TemporaryDirectory(prefix="tokenrt-bench-") as name:
        folder = Path(name)
        for method in names or methods.names():
            family = methods.get(method).family
            if family not in BUDGETS or methods.get(method).needs:
                continue
            told, budget = BUDGETS[family]
            floor, own = folder / "slice.onnx", folder / f"{method}.onnx"
            try:
                planned = reduce(source, method=method, budget=budget, output=own).plan
            except TokenrtError as refusal:
                costs.append(Cost(method, family, told, None, reason=str(refusal).splitlines()[0]))
                continue
            _floor(source, planned, floor)
            models = {"slice": floor, "method": own, "unreduced": source}
            whole, ratio = _ratios(models, threads)
            costs.append(Cost(method, family, told, (ratio - 1) / whole, ratio))
            print(f"{method}: {_cells(costs[-1])[3]}", file=sys.stderr)
            own.unlink()
    order = list(FAMILIES)
    return MethodCosts(sorted(costs, key=lambda cost: (order.index(cost.family), cost.method)), threads)


def _floor(source: Path, planned: Plan, output: Path) -> None:
    """`slice` with the token counts of another plan, at the same blocks."""
    from tokenrt.passes.reduce import reduce

    counts = [site.tokens for site in planned.sites]
    reduce(
        source,
        method="slice",
        budget=Budget.tokens(counts, [site.block for site in planned.sites]),
        output=output,
    )


def _runs(models: Mapping[str, Path], threads: int) -> Mapping[str, timing.Run]:
    opened = {name: timing.session(path, threads=threads) for name, path in models.items()}
    data = timing.feeds(opened["slice"], BATCH)
    return {name: timing.runner(session, data) for name, session in opened.items()}


def _ratios(models: Mapping[str, Path], threads: int) -> tuple[float, float]:
    """Times of the unreduced model and of the method over that of `slice`, taken before or now."""
    journal = Journal.of("method_costs")
    key = digest(*models.values(), f"{threads} threads, batch {BATCH}, {ROUNDS} x {REPEATS}", _processor())
    known = journal.get(key)
    if known is None:
        make = partial(_runs, models, threads)
        found = timing.compare_afresh(make, base="slice", rounds=ROUNDS, repeats=REPEATS)
        known = journal.put(key, [found["unreduced"].median, found["method"].median])
    return known[0], known[1]


def _processor() -> str:
    where = results.circumstances()
    return f"{where['processor']}, {where['processors']}, {where['versions']}"


def _cells(cost: Cost) -> list[str]:
    if cost.share is None or cost.ratio is None:
        return [f"`{cost.method}`", cost.family, f"`{cost.budget}`", cost.reason, "-"]
    return [f"`{cost.method}`", cost.family, f"`{cost.budget}`", f"{cost.share:.1%}", f"{cost.ratio:.3f}"]
