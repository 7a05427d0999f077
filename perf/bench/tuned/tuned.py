"""What `tokenrt tune` finds, beside what a person would have picked, on data that it has not seen.

`python -m tokenrt.perf.bench tuned` writes docs/results/tuned.md. What was judged is kept in the cache, so that a run that was
stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenrt.perf.bench import results
from tokenrt.perf.bench.tuned import digits, pictures
from tokenrt.perf.bench.tuned.comparison import RULES, Comparison, Crossed
from tokenrt.perf.bench.tuned.gpu import OnGpu
from tokenrt.perf.bench.tuned.gpu import run as on_gpu
from tokenrt.perf.planner.harm import MEASURES
from tokenrt.perf.tune.families import FAMILIES
from tokenrt.perf.tune.tune import METHODS


@dataclass(frozen=True)
class TunedReport:
    """All comparisons, and the GPU's."""

    comparisons: Sequence[Comparison | Crossed]
    gpu: OnGpu

    def as_dict(self) -> dict[str, Any]:
        return {"comparisons": [each.as_dict() for each in self.comparisons], "gpu": self.gpu.as_dict()}

    def __rich__(self) -> Any:
        every = [*self.comparisons, *self.gpu.comparisons]
        rows = (
            [each.title, f"{each.ratio:.3f}", "" if each.bound is None else f"{each.bound:g}"]
            for each in every
        )
        return results.shown(("comparison", "harm against the best other:", "at most:"), rows, "tuned plans")

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        own, others = ", ".join(METHODS), ", ".join(RULES)
        told = (
            f"`tokenrt tune` with its own methods ({own}) sees a part of the data and recommends a plan. Beside it stand the "
            f"published schedules ({', '.join(FAMILIES)}) of {others}, each as mild as the wish allows where it can be had, "
            "on the data that was held out. Which of them is the best there nobody could have known; the tuned plan is compared "
            "with that one. "
            f"Harm is {MEASURES['dense']}, of maps, or {MEASURES['logits']}; intervals are of the mean over images. "
            "Made by `python -m tokenrt.perf.bench tuned`."
        )
        parts = [*(each.told() for each in self.comparisons), self.gpu.told()]
        return "\n\n".join(["# Tuned plans", told, *parts, results.told(where)])


def run(threads: int | None = None) -> TunedReport:
    """Search and compare."""
    with pictures.judged(threads) as judge:
        found = [pictures.by_work(judge), pictures.by_time(judge)]
        gpu = on_gpu(judge)
    return TunedReport([*found, *digits.run(threads)], gpu)
