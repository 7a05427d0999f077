"""Multiply-accumulates as planned, beside those that papers print for the same model and budget."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.passes.plan import Budget, Plan
from tokenrt.perf import results
from tokenrt.perf.plain_vit import PlainViT

FORMS = {
    "DeiT-Ti/16": PlainViT(192, 3, 12, 16),
    "DeiT-S/16": PlainViT(384, 6, 12, 16),
    "DeiT-B/16": PlainViT(768, 12, 12, 16),
    "ViT-L/16": PlainViT(1024, 16, 24, 16),
    "ViT-H/14": PlainViT(1280, 16, 32, 14),
}
TOME = "ToMe, ICLR 2023"


@dataclass(frozen=True)
class Published:
    """A budget of `tome --remove` (0: unreduced) and the count printed for it.

    giga: GMACs of one image, which papers call GFLOPs; None where none was looked up.
    """

    model: str
    removed: int
    giga: float | None = None
    source: str = ""


PUBLISHED = (
    Published("DeiT-Ti/16", 0),
    Published("DeiT-Ti/16", 8, 0.9, TOME),
    Published("DeiT-Ti/16", 12, 0.8, TOME),
    Published("DeiT-Ti/16", 16, 0.6, TOME),
    Published("DeiT-S/16", 0, 4.6, "timm's model card"),
    Published("DeiT-S/16", 8, 3.4, TOME),
    Published("DeiT-S/16", 13, 2.7, TOME),
    Published("DeiT-S/16", 16, 2.3, TOME),
    Published("DeiT-B/16", 0),
    Published("ViT-L/16", 0),
    Published("ViT-H/14", 0),
)


@dataclass(frozen=True)
class Counted:
    """A published count and the plan's own."""

    published: Published
    plan: Plan

    @property
    def giga(self) -> float:
        return self.plan.macs_after / 1e9

    def as_dict(self) -> dict[str, Any]:
        told = self.published
        return {
            "model": told.model,
            "removed_per_block": told.removed,
            "tokens": self.plan.counts(),
            "macs": self.plan.macs_after,
            "published_gmacs": told.giga,
            "source": told.source,
        }

    def cells(self) -> list[str]:
        told = self.published
        budget = f"`tome --remove {told.removed}`" if told.removed else "unreduced"
        published = "" if told.giga is None else str(told.giga)
        return [told.model, budget, str(self.plan.counts()[-1]), f"{self.giga:.2f}", published, told.source]


HEAD = ("model", "budget", "tokens left:", "GMACs planned:", "published:", "source")


@dataclass(frozen=True)
class FlopsReport:
    """All counts."""

    rows: Sequence[Counted]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": [row.as_dict() for row in self.rows]}

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="multiply-accumulates of one image")
        for head in HEAD:
            table.add_column(head.removesuffix(":"), justify="right" if head.endswith(":") else "left")
        for row in self.rows:
            table.add_row(*(cell.strip("`") for cell in row.cells()))
        return table

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        told = (
            "Multiply-accumulates of one image as a plan counts them (matrix products, convolutions, attention), beside what "
            "papers print for the same model and budget. Made by `python -m tokenrt.perf.bench flops`."
        )
        table = results.table(HEAD, [row.cells() for row in self.rows])
        return "\n\n".join(["# Multiply-accumulates", told, table, results.told(where)])


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
            made = plan(paths[told.model], method="tome", budget=Budget.remove(told.removed), allow_noop=True)
            rows.append(Counted(told, made))
    return FlopsReport(rows)
