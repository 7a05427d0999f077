"""Engine layers that a reduction adds at a site, about one launch each, as TensorRT-RTX fuses them.

`python -m tokenrt.perf.bench engine_layers` writes docs/results/engine_layers.md. Engines are built for one image and for
eight, in float16, of DeiT-S as timm has it, with random weights: with the portable bodies that `reduce` writes, and with
those that `lower --target` and `build` give to GPU targets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.export import export
from tokenrt.passes.forms.bodies import for_gpu
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.targets.layers import layers

MODEL = "timm:deit_small_patch16_224"
BUDGETS: Mapping[str, Budget] = {
    "tome": Budget.remove(8),
    "pitome": Budget.remove(8),
    "topk": Budget.keep(0.7, [3, 6, 9]),
    "evit": Budget.keep(0.7, [3, 6, 9]),
}
BATCHES = (1, 8)
FORMS = ("portable", "for GPUs")


@dataclass(frozen=True)
class Row:
    """Layers of one engine, and how many each of its sites adds."""

    method: str
    form: str
    batch: int
    layers: int
    sites: int
    base: int

    @property
    def each(self) -> float:
        return (self.layers - self.base) / self.sites

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "layers_a_site": round(self.each, 2)}


@dataclass(frozen=True)
class EngineLayers:
    """All rows; capability: what the engines were built for."""

    capability: str
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"capability": self.capability, "rows": [row.as_dict() for row in self.rows]}

    def page(self, where: Mapping[str, Any]) -> str:
        """The results page."""
        columns = [(form, batch) for batch in dict.fromkeys(row.batch for row in self.rows) for form in FORMS]
        found = {(row.method, row.form, row.batch): row for row in self.rows}
        lines = [
            [
                f"`{method}`",
                *(f"{found[method, form, batch].each:+.1f}" for form, batch in columns),
            ]
            for method in dict.fromkeys(row.method for row in self.rows)
        ]
        head = ["method", *(f"{form}, batch {batch}:" for form, batch in columns)]
        bases = ", ".join(f"{row.base} at batch {row.batch}" for row in self.rows if row.form == FORMS[0])
        return "\n\n".join(
            (
                "# Engine layers",
                f"Layers that a site adds to an engine of {MODEL} (random weights), float16, capability {self.capability}: "
                "about one launch each, counted by the builder of TensorRT-RTX, not timed; nothing ran on a GPU. Portable "
                "bodies are those that `reduce` writes; `lower --target` and `build` give the others to targets of TensorRT "
                "and TensorRT-RTX. Made by `python -m tokenrt.perf.bench engine_layers`.",
                results.table(head, lines),
                f"Unreduced: {', '.join(dict.fromkeys(bases.split(', ')))} layers.",
                results.told(where),
            )
        )


def run(
    budgets: Mapping[str, Budget] = BUDGETS,
    batches: Sequence[int] = BATCHES,
    model: Path | None = None,
    capability: str = "8.9",
) -> EngineLayers:
    """Build the engines and count. model: instead of DeiT-S.

    Raises: DependencyError where TensorRT-RTX is not installed, BuildError where it refuses one.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx"
        if model is None:
            export(MODEL, whole, random_weights=True)
        rows = [*_rows(model or whole, budgets, batches, capability)]
    return EngineLayers(capability, tuple(rows))


def _rows(
    whole: Path, budgets: Mapping[str, Budget], batches: Sequence[int], capability: str
) -> Iterator[Row]:
    base = {batch: layers(_half(ir.load(whole)), capability=capability, batch=batch) for batch in batches}
    for method, budget in budgets.items():
        reduced = reduce(whole, method=method, budget=budget)
        for form in FORMS:
            model = _half(reduced.model)
            if form != FORMS[0]:
                for_gpu(model)
            for batch in batches:
                count = layers(model, capability=capability, batch=batch)
                yield Row(method, form, batch, count, len(reduced.plan.sites), base[batch])


def _half(model: ir.Model) -> ir.Model:
    return convert(model, precision="fp16", keep_io=True, rules="standard", check=False).model
