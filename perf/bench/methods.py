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
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.bench import results, roles
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.models import DEIT_S, exported
from tokenrt.perf.bench.roles import Share
from tokenrt.perf.profile import timing

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

EVERY_BLOCK, THREE_STAGES = Budget.remove(13), Budget.keep(0.7, [3, 6, 9])
BUDGETS: dict[str, tuple[str, Budget]] = {
    "merging": ("--remove 13", EVERY_BLOCK),
    "pruning": ("--keep 0.7 --layers 3,6,9", THREE_STAGES),
    "clustering": ("--keep 0.7 --layers 3,6,9", THREE_STAGES),
}
"""Family -> the budget its methods are measured at; families without one are not one-shot on still pictures."""

OWN: dict[str, tuple[str, Budget]] = {"expedit": ("--tokens 145 --layers 3", Budget.tokens([145], [3]))}
"""Budgets of methods that cannot keep that of their family: Expedit reduces once, to a grid."""

MOST = 0.05
BATCH, ROUNDS, REPEATS = 8, 4, 3

PROFILED = 10
"""Runs of a profile."""


@dataclass(frozen=True)
class Cost:
    """One method: time above the floor in units of the unreduced model's, or why there is none."""

    method: str
    family: str
    budget: str
    share: float | None
    ratio: float | None = None
    reason: str = ""
    roles: Sequence[Share] = ()
    """Where the time of one run goes; for methods above MOST."""

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"method": self.method, "family": self.family, "budget": self.budget}
        if self.share is None or self.ratio is None:
            return {**found, "reason": self.reason}
        found |= {"share_of_unreduced": round(self.share, 4), "times_slice": round(self.ratio, 4)}
        return found | ({"roles": [share.as_dict() for share in self.roles]} if self.roles else {})


@dataclass(frozen=True)
class MethodCosts:
    """The costs of all methods."""

    costs: Sequence[Cost]
    threads: int

    def as_dict(self) -> dict[str, Any]:
        told = {"model": DEIT_S, "batch": BATCH, "threads": self.threads, "at_most": MOST}
        return {**told, "costs": [cost.as_dict() for cost in self.costs]}

    def __rich__(self) -> Table:
        title = f"DeiT-S, batch {BATCH}, ONNX Runtime CPU, {self.threads} threads"
        return results.shown(HEAD, map(_cells, self.costs), title)

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
        ]
        spent = [cost for cost in self.costs if cost.method in above and cost.roles]
        if spent:
            parts += ["## What those above it spend", SPENT]
            parts += [part for cost in spent for part in _spent(cost)]
        return "\n\n".join(part for part in [*parts, results.told(where)] if part)


SPENT = (
    "Time of one run by what its nodes are there for, with ONNX Runtime's profiler on (which adds a little to every node). "
    "Nodes that repeat the model's own, as those of a whole attention that a score is taken from, are the model's: the "
    "runtime computes them once."
)
WHOLE = (
    "the attention that every token receives takes all N x N products once more; so that a fused attention stays fused, "
    "the model's own is not read"
)
WHY = {
    "ltmp": WHOLE,
    "mctf": f"{WHOLE}; its three criteria and two rounds are many small operators",
    "tomesd": "whole tokens are compared, six times as wide as the keys that ToMe compares, and put back at every block",
    "atc": "clusters join one pair after the other, N - K times, in a loop",
    "kmedoids": "rounds of K-medoids run one after the other, in a loop, weighted by the attention that every token receives",
    "token_pooling": "rounds of K-means run one after the other, in a loop",
}
"""Method -> why it can take more than MOST; the breakdown below each is the evidence."""

HEAD = ("method", "family", "budget", "share of the unreduced time:", "times `slice`:")


def _spent(cost: Cost) -> tuple[str, str]:
    """Why a method is above the limit, and where its time goes."""
    why = WHY.get(cost.method, "no reason stated")
    return f"`{cost.method}`: {why}.", results.table(roles.HEAD, roles.rows(cost.roles))


def run(names: Sequence[str] | None = None) -> MethodCosts:
    """Time every method that needs no trained weights. Raises: TokenrtError when the model cannot be exported."""
    from tokenrt.passes.reduce import reduce

    source, threads, costs = exported(DEIT_S), timing.default_threads(), list[Cost]()
    with tempfile.TemporaryDirectory(prefix="tokenrt-bench-") as name:
        folder = Path(name)
        for method in names or methods.at_blocks():
            family = methods.get(method).family
            if family not in BUDGETS or methods.get(method).needs:
                continue
            told, budget = OWN.get(method, BUDGETS[family])
            floor, own = folder / "slice.onnx", folder / f"{method}.onnx"
            try:
                reduced = reduce(source, method=method, budget=budget, output=own)
            except TokenrtError as refusal:
                costs.append(Cost(method, family, told, None, reason=str(refusal).splitlines()[0]))
                continue
            _floor(source, reduced.plan, floor)
            models = {"slice": floor, "method": own, "unreduced": source}
            whole, ratio = _ratios(models, threads)
            share = (ratio - 1) / whole
            spent = _roles(own, reduced.model, threads) if share > MOST else []
            costs.append(Cost(method, family, told, share, ratio, roles=spent))
            print(f"{method}: {_cells(costs[-1])[3]}", file=sys.stderr)
            own.unlink()
    order = list(methods.families())
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


def _roles(path: Path, model: ir.Model, threads: int) -> list[Share]:
    """What the time of a method's model is spent on, taken before or now."""
    journal, key = Journal.of("method_roles"), digest(path, f"{threads} threads, batch {BATCH}", _processor())
    known = journal.get(key)
    if known is None:
        found = roles.breakdown(model, BATCH, threads, PROFILED)
        known = journal.put(key, [share.as_dict() for share in found])
    return [Share.from_dict(share) for share in known]


def _processor() -> str:
    where = results.circumstances()
    return f"{where['processor']}, {where['processors']}, {where['versions']}"


def _cells(cost: Cost) -> list[str]:
    if cost.share is None or cost.ratio is None:
        return [f"`{cost.method}`", cost.family, f"`{cost.budget}`", cost.reason, "-"]
    return [f"`{cost.method}`", cost.family, f"`{cost.budget}`", f"{cost.share:.1%}", f"{cost.ratio:.3f}"]
