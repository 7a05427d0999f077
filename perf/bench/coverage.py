"""Generates docs/coverage.md: which architectures, exported in which ways, `reduce` takes.

Run in the repository (the models are those of tests/zoo): `python -m tokenrt.perf.bench.coverage`. Every cell is a
model that was exported, reduced by merging and by pruning, and run in ONNX Runtime. With the names of models, only
their rows are made again; the others stay as the data beside the page has them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import results
from tokenrt.perf.profile import timing

METHODS = ("tome", "evit")
REMOVED = 2
WORDS = 32

FORMS: dict[str, dict[str, Any]] = {
    "dynamo 18": {"opset": 18},
    "dynamo 20": {"opset": 20},
    "dynamo 23": {"opset": 23},
    "TorchScript 17": {"opset": 17, "exporter": "torchscript"},
    "batch fixed": {"opset": 18, "batch": 1},
    "fp16": {"opset": 18, "dtype": "fp16"},
    "ORT optimizer": {"opset": 18, "fused": "transformers"},
    "ORT optimizer, TorchScript 17": {"opset": 17, "exporter": "torchscript", "fused": "transformers"},
    "onnxscript fusions": {"opset": 18, "fused": "onnxscript"},
}
"""Column -> how the model is exported; batch is dynamic and weights are fp32 where nothing else is said."""

YES, NONE = "yes", "-"


@dataclass(frozen=True)
class Cell:
    """What became of one model in one form: reduced, refused, failed, or not exported; and why."""

    model: str
    form: str
    status: str
    reason: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the table and write it; 1 when something failed that should not."""
    parser = argparse.ArgumentParser(prog="python -m tokenrt.perf.bench.coverage", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="make these rows again; all when left out")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"), help="page to write")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="models at a time (2)")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cells = []
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(_row, asked.models or _zoo().names()):
            cells.extend(row)
            for cell in row:
                print(
                    f"{cell.model}, {cell.form}: {cell.status} {cell.reason[:100]}",
                    file=sys.stderr,
                    flush=True,
                )
    where, data_path = results.circumstances(), asked.out.with_suffix(".json")
    if asked.models:
        cells = beside(cells, data_path, _zoo().names())
    with atomic(asked.out) as temporary:
        temporary.write_text(page(cells, where), encoding="utf-8")
    data = {**where, "cells": [vars(cell) for cell in cells]}
    with atomic(data_path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return int(any(cell.status == "failed" for cell in cells))


def beside(made: Sequence[Cell], data: Path, order: Sequence[str]) -> list[Cell]:
    """The rows just made among those of other models that the data holds, in the order of the zoo."""
    held = json.loads(data.read_text(encoding="utf-8"))["cells"] if data.is_file() else []
    new = {cell.model for cell in made}
    place = {name: number for number, name in enumerate(order)}
    kept = [Cell(**cell) for cell in held if cell["model"] not in new and cell["model"] in place]
    return sorted([*kept, *made], key=lambda cell: place.get(cell.model, len(place)))


def _zoo() -> Any:
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module("tests.zoo")


def _row(name: str) -> list[Cell]:
    """One model in every form, in a process of its own."""
    zoo = _zoo()
    return [_cell(zoo, name, form) for form in FORMS]


def _cell(zoo: Any, name: str, form: str) -> Cell:
    entry, options = zoo.entry(name), FORMS[form]
    if options.get("fused") == "transformers" and entry.fuse is None:
        return Cell(name, form, "no such form", "ONNX Runtime's optimizer has no type for this model")
    try:
        path = zoo.onnx(name, **options)
    except Exception as error:  # whatever an exporter raises
        return Cell(name, form, "not exported", _line(error))
    shape = None
    if "dynamic-tokens" in entry.tags:
        shape = dict.fromkeys(("input_ids", "attention_mask"), ("B", WORDS))
    try:
        for method in METHODS:
            _reduce_and_run(zoo, name, path, method, shape, int(options.get("batch", 2)))
    except TokenrtError as error:
        return Cell(name, form, "refused", _line(error))
    except Exception as error:  # the page is to show what breaks, not to break on it
        return Cell(name, form, "failed", f"{type(error).__name__}: {_line(error)}")
    return Cell(name, form, "reduced")


def _reduce_and_run(zoo: Any, name: str, path: Path, method: str, shape: Any, batch: int) -> None:
    """Raises: TokenrtError for a refusal; RuntimeError for a reduced model that does not do its work."""
    from tokenrt.passes.reduce import reduce

    with tempfile.TemporaryDirectory(prefix="tokenrt-coverage-") as folder:
        output = Path(folder) / "reduced.onnx"
        reduced = reduce(path, method=method, budget=Budget.remove(REMOVED), shape=shape, output=output)
        before, after = (_run(zoo, name, model, batch) for model in (path, output))
    if reduced.plan.counts()[-1] >= reduced.plan.tokens:
        raise RuntimeError(f"{method} removed nothing")
    for key, value in before.items():
        found = after.get(key)
        if found is None or found.shape != value.shape:
            raise RuntimeError(
                f"{method}: output {key} was {value.shape} and is {getattr(found, 'shape', None)}"
            )
        if not np.isfinite(found).all():
            raise RuntimeError(f"{method}: output {key} is not finite")


def _run(zoo: Any, name: str, model: Path, batch: int) -> dict[str, Any]:
    opened = timing.session(model, threads=1)
    made = {key: value.numpy() for key, value in zoo.examples(name, batch).items()}
    halves = {value.name for value in opened.get_inputs() if value.type == "tensor(float16)"}
    fed = {
        value.name: made[value.name].astype(np.float16) if value.name in halves else made[value.name]
        for value in opened.get_inputs()
    }
    found = opened.run(None, fed)
    return dict(zip((value.name for value in opened.get_outputs()), found, strict=True))


def page(cells: Sequence[Cell], where: Mapping[str, Any]) -> str:
    """The page: one row a model, one column a form, numbered reasons below."""
    reasons: dict[tuple[str, str], tuple[int, str]] = {}
    forms = list(dict.fromkeys(cell.form for cell in cells))
    rows: dict[str, list[str]] = {}
    for cell in cells:
        text = YES if cell.status == "reduced" else NONE
        if cell.status not in ("reduced", "no such form"):
            # Reasons that differ in the names of nodes alone are one.
            kind = re.sub(r"'[^']*'|\[[^\]]*\]|\([^)]*\)", "", cell.reason)
            number, _ = reasons.setdefault((cell.status, kind), (len(reasons) + 1, cell.reason))
            text = f"{cell.status} ({number})"
        rows.setdefault(cell.model, [f"`{cell.model}`"]).append(text)
    told = (
        "Small seeded models of each architecture (`tests/zoo`), exported in each of these ways, reduced by `tome` and by "
        f"`evit` (`--remove {REMOVED}`), and run in ONNX Runtime: outputs finite and of the original's shapes. Batch is "
        "dynamic and weights are fp32 unless the column says otherwise; fp16, fixed batch and the fused forms are opset 18 "
        "from dynamo unless they say otherwise. A dash: that optimizer has no type for the model. How exact the reduced "
        "models are is tested in `tests/passes` and `tests/reports`. Rows of `form_` are small models of one property each: "
        "how the stream lies, how attention is written, gates, learned tokens behind the patches, int8, an If. Made by "
        "`python -m tokenrt.perf.bench.coverage`, which takes names of models to make their rows alone: date and versions "
        "below are those of the rows made last."
    )
    parts = ["# Coverage", told, results.table(["model", *forms], list(rows.values()))]
    if reasons:
        lines = [f"{number}. {status}: {reason}" for (status, _), (number, reason) in reasons.items()]
        parts += ["## Reasons", "\n".join(lines)]
    return "\n\n".join([*parts, results.told(where)]) + "\n"


def _line(error: BaseException) -> str:
    """The first line that says something, fit for a Markdown list."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines or [type(error).__name__])[0]
    if line.startswith(("no transformer block", "the reduction saves no work")) and len(lines) > 1:
        line = f"{line}: {lines[1]}"
    return line[:300].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
