"""Multiply-accumulates as planned, beside those that papers print for the same model and budget."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.bench import results
from tokenrt.perf.bench.plain_vit import PlainViT

Asked = tuple[str, Budget, str]
"""A method, its budget, and how the table writes them."""

FORMS = {
    "DeiT-Ti/16": PlainViT(192, 3, 12, 16),
    "DeiT-S/16": PlainViT(384, 6, 12, 16),
    "DeiT-B/16": PlainViT(768, 12, 12, 16),
    "ViT-L/16": PlainViT(1024, 16, 24, 16),
    "ViT-H/14": PlainViT(1280, 16, 32, 14),
}
TOME, EVIT, DEIT, MAE = "ToMe, ICLR 2023", "EViT, ICLR 2022", "DeiT, ICML 2021", "ToMe, ICLR 2023 (MAE)"

NEAR = 0.02
"""Of a published count, what a plan may be off, beside half of the last digit that was printed."""

UNREDUCED = ("slice", Budget.remove(0), "unreduced")


def _tome(removed: int) -> Asked:
    return "tome", Budget.remove(removed), f"`tome --remove {removed}`"


def _evit(ratio: float) -> Asked:
    return "evit", Budget.keep(ratio, [3, 6, 9]), f"`evit --keep {ratio} --layers 3,6,9`"


@dataclass(frozen=True)
class Published:
    """A model, a method with its budget, and the count printed for it.

    giga: GMACs of one image, which papers call GFLOPs, with as many digits as were printed.
    """

    model: str
    asked: Asked
    giga: str
    source: str

    def allowed(self) -> float:
        """How far from `giga` a count may be: NEAR of it, or the rounding of what was printed."""
        digits = len(self.giga.partition(".")[2])
        return max(NEAR * float(self.giga), 0.5 * 10.0**-digits)


PUBLISHED = (
    Published("DeiT-Ti/16", UNREDUCED, "1.3", DEIT),
    Published("DeiT-Ti/16", _tome(8), "0.9", TOME),
    Published("DeiT-Ti/16", _tome(12), "0.8", TOME),
    Published("DeiT-Ti/16", _tome(16), "0.6", TOME),
    Published("DeiT-S/16", UNREDUCED, "4.6", DEIT),
    Published("DeiT-S/16", _tome(8), "3.4", TOME),
    Published("DeiT-S/16", _tome(13), "2.7", TOME),
    Published("DeiT-S/16", _tome(16), "2.3", TOME),
    Published("DeiT-S/16", _evit(0.7), "3.0", EVIT),
    Published("DeiT-S/16", _evit(0.5), "2.3", EVIT),
    Published("DeiT-B/16", UNREDUCED, "17.6", DEIT),
    Published("ViT-L/16", UNREDUCED, "61.6", TOME),
    Published("ViT-L/16", _tome(8), "31.0", MAE),
    Published("ViT-H/14", UNREDUCED, "167", MAE),
)


@dataclass(frozen=True)
class Counted:
    """A published count and the plan's own."""

    published: Published
    plan: Plan

    @property
    def giga(self) -> float:
        return self.plan.macs_after / 1e9

    @property
    def within(self) -> bool:
        """Whether the plan's count is the published one, within NEAR or its rounding."""
        return abs(self.giga - float(self.published.giga)) <= self.published.allowed()

    def as_dict(self) -> dict[str, Any]:
        told = self.published
        return {
            "model": told.model,
            "budget": told.asked[2].strip("`"),
            "tokens": self.plan.counts(),
            "macs": self.plan.macs_after,
            "published_gmacs": float(told.giga),
            "within": self.within,
            "source": told.source,
        }

    def cells(self) -> list[str]:
        told = self.published
        off = f"{self.giga / float(told.giga) - 1:+.1%}"
        return [
            told.model,
            told.asked[2],
            str(self.plan.counts()[-1]),
            f"{self.giga:.2f}",
            told.giga,
            off,
            told.source,
        ]


HEAD = ("model", "budget", "tokens left:", "GMACs planned:", "published:", "off:", "source")


@dataclass(frozen=True)
class FlopsReport:
    """All counts."""

    rows: Sequence[Counted]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": [row.as_dict() for row in self.rows]}

    def __rich__(self) -> Any:
        rows = ([cell.strip("`") for cell in row.cells()] for row in self.rows)
        return results.shown(HEAD, rows, "multiply-accumulates of one image")

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        told = (
            "Multiply-accumulates of one image as a plan counts them (matrix products, convolutions, attention), beside what "
            "papers print for the same model and budget (as GFLOPs: they count a multiplication with its addition once, and so "
            "does a plan; norms, softmax, activations and the choice of tokens count for nothing in either). "
            "Made by `python -m tokenrt.perf.bench flops`."
        )
        table = results.table(HEAD, [row.cells() for row in self.rows])
        beyond = [f"{row.published.model} {row.published.asked[2]}" for row in self.rows if not row.within]
        told_off = f"Off by more than {NEAR:.0%} and more than the rounding of the published number: "
        verdict = f"{told_off}{', '.join(beyond) or 'none'}."
        return "\n\n".join(["# Multiply-accumulates", told, table, verdict, results.told(where)])


def run(published: Sequence[Published] = PUBLISHED) -> FlopsReport:
    """Plan every budget on a model of shapes alone."""
    from tokenrt.passes.reduce import plan

    rows = []
    with tempfile.TemporaryDirectory(prefix="tokenrt-flops-") as folder:
        paths = {
            name: FORMS[name].write(Path(folder) / f"{place}.onnx", seed=None)
            for place, name in enumerate(dict.fromkeys(told.model for told in published))
        }
        for told in published:
            method, budget, _ = told.asked
            made = plan(paths[told.model], method=method, budget=budget, allow_noop=True)
            rows.append(Counted(told, made))
    return FlopsReport(rows)
