"""How well two runs of the paired comparison agree, and how much of a run the per-node profile accounts for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenrt.passes.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf import results, timing
from tokenrt.perf.bench_models import DEIT_S, exported
from tokenrt.perf.profile import Profile, profile

METHOD, BUDGET, TOLD = "tome", Budget.remove(13), "tome --remove 13"
AGREE, COVER = 0.03, 0.95
"""What is asked: two ratios within 3 % of one another, and 95 % of the time in named groups."""

RUNS, ROUNDS = 4, 40


@dataclass(frozen=True)
class Agreement:
    """Profiles of one pair of models, one after the other."""

    batch: int
    runs: tuple[Profile, ...]

    @property
    def ratios(self) -> list[float]:
        return [run.ratio.median for run in self.runs if run.ratio is not None]

    @property
    def spread(self) -> float:
        """Largest ratio over the smallest, less one: no two runs are further apart."""
        return max(self.ratios) / min(self.ratios) - 1

    @property
    def covered(self) -> float:
        return min(nodes.covered for run in self.runs for nodes in (run.nodes, run.original) if nodes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "ratios": [round(ratio, 4) for ratio in self.ratios],
            "spread": round(self.spread, 4),
            "covered": round(self.covered, 4),
            "runs": [run.as_dict() for run in self.runs],
        }


@dataclass(frozen=True)
class Report:
    """All batches, and how busy the machine was before and after."""

    found: tuple[Agreement, ...]
    load: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": "DeiT-S, random weights",
            "reduction": TOLD,
            "load_average": [round(load, 2) for load in self.load],
            "batches": [item.as_dict() for item in self.found],
        }

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(item.batch),
                ", ".join(f"{ratio:.3f}" for ratio in item.ratios),
                f"{item.spread:.1%}",
                f"{item.covered:.1%}",
            )
            for item in self.found
        ]

    def page(self, where: Mapping[str, Any]) -> str:
        """The page of docs/results."""
        before, after = self.load
        threads = timing.default_threads()
        return f"""# How well two profiles agree

`tokenrt profile` of DeiT-S (random weights, 224 px), `{TOLD}`, against the original, {RUNS} times in a row: {ROUNDS} rounds in
each of three repeats, ONNX Runtime CPU, {threads} threads. Asked is that no two ratios are more than {AGREE:.0%} apart and that
the per-node profile accounts for at least {COVER:.0%} of a run. Load average {before:.1f} before and {after:.1f} after; this
measurement alone makes {threads}. Made by `python -m tokenrt.perf.bench agreement`.

{results.table(("batch:", "time, in times of the original", "furthest apart:", "accounted for, at least:"), self.rows())}

{results.told(where)}
"""

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("batch", "ratios", "furthest apart", "accounted for", box=None, pad_edge=False)
        for row in self.rows():
            table.add_row(*row)
        return table


def run(batches: tuple[int, ...] = (1, 4), runs: int = RUNS, rounds: int = ROUNDS) -> Report:
    """Profile the same pair again and again."""
    before = os.getloadavg()[0]
    with TemporaryDirectory(prefix="tokenrt-") as folder:
        model, reduced = exported(DEIT_S), Path(folder) / "reduced.onnx"
        reduce(model, method=METHOD, budget=BUDGET, output=reduced)
        found = tuple(
            Agreement(batch, tuple(_profiled(reduced, model, batch, rounds) for _ in range(runs)))
            for batch in batches
        )
    return Report(found, (before, os.getloadavg()[0]))


def _profiled(reduced: Path, model: Path, batch: int, rounds: int) -> Profile:
    made = profile(reduced, original=model, batch=batch, rounds=rounds)
    assert isinstance(made, Profile)
    return made
