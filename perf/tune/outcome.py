"""What a search has found: the verdict in words, the plans around it, and the files of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenrt.errors import PlanError
from tokenrt.files import atomic
from tokenrt.perf.planner.harm import MEASURES
from tokenrt.perf.tune.judged import Judged

State = Literal["met", "not met", "nothing helps"]
UNMET = 3
"""Exit status where the wish cannot be met, or nothing helps."""

RUN, BEST, MODEL, PLANS = "run.json", "best.toml", "reduced.onnx", "plans"

SAME = ("key", "wish", "methods", "cost", "seed")
"""What two runs have in common whose files may lie in one folder."""


def check_same(folder: Path, told: Mapping[str, Any]) -> None:
    """Whether a folder holds nothing of another run. Raises: PlanError."""
    if not (folder / RUN).exists():
        return
    before = json.loads((folder / RUN).read_text(encoding="utf-8"))
    other = [name for name in SAME if before.get(name) != told[name]]
    if other:
        words = ", ".join("model or data" if name == "key" else name for name in other)
        raise PlanError(f"{folder} holds a run with another {words}: name another folder with -o")


@dataclass(frozen=True)
class Outcome:
    """The end of a search.

    told: what was searched, by name: model, wish, data, cost and so on. recommended: the plan to take, None where there is none;
    nearest: the one that comes nearest to a wish that cannot be met. front: plans that no other beats in both cost and harm.
    """

    state: State
    verdict: str
    told: Mapping[str, Any]
    plans: Sequence[Judged]
    front: Sequence[Judged]
    recommended: Judged | None = None
    nearest: Judged | None = None
    left_out: Mapping[str, str] | None = None
    folder: Path = Path()

    @property
    def ok(self) -> bool:
        return self.state == "met"

    status = UNMET

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.told,
            "measures": MEASURES,
            "state": self.state,
            "verdict": self.verdict,
            "recommended": self._place(self.recommended),
            "nearest": self._place(self.nearest),
            "plans": [self._entry(each) for each in self.plans],
            "left_out": dict(self.left_out or {}),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("plan", box=None, pad_edge=False)
        for name in ("cost", "harm", "95 % between", "sites"):
            table.add_column(name, justify="right")
        for each in self.front:
            low, high = each.interval()
            mark = " (recommended)" if each is self.recommended else ""
            table.add_row(
                each.candidate.origin + mark,
                f"{each.ratio:.1%}",
                f"{each.mean:.4g}",
                f"{low:.3g} to {high:.3g}",
                str(len(each.plan.sites)),
            )
        lines = [Text(self.verdict), table] if self.front else [Text(self.verdict)]
        return Group(*lines, Text(f"written: {self.folder / RUN}"))

    def write(self) -> Outcome:
        """Write the run and the plans of its front; the recommended one has a name of its own."""
        (self.folder / PLANS).mkdir(parents=True, exist_ok=True)
        for each in self.front:
            each.plan.save(self.folder / PLANS / f"{self._place(each)}.toml")
        if self.recommended is not None:
            self.recommended.plan.save(self.folder / BEST)
        with atomic(self.folder / RUN) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        return self

    def _place(self, judged: Judged | None) -> int | None:
        return next((place for place, each in enumerate(self.plans) if each is judged), None)

    def _entry(self, judged: Judged) -> dict[str, Any]:
        low, high = judged.interval()
        return {
            "origin": judged.candidate.origin,
            "spec": judged.plan.spec(),
            "plan": judged.plan.as_dict(),
            "ratio": judged.ratio,
            "harm": judged.mean,
            "interval": [low, high],
            "images": list(judged.harm.images),
            "front": any(each is judged for each in self.front),
        }
