"""The lines that make a run, what came of it, and its report again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from tokenrt.perf.report.document import Command
from tokenrt.perf.report.run import BEST, MODEL, Run


def of_run(run: Run) -> list[Command]:
    """From the search to this page."""
    told, asked = run.told, run.told["asked"]
    model, folder = told["model"], str(run.folder)
    wish = told["wish"]
    tune = ["tokenrt", "tune", model, "--data", asked["data"], f"--{wish['kind']}", f"{wish['value']:g}"]
    tune += [
        "--methods",
        ",".join(told["methods"]),
        "--seed",
        str(told["seed"]),
        "--batch",
        str(told["batch"]),
    ]
    tune += ["--target", told["target"]] if told.get("target") else []
    tune += [*_options(asked), "-o", folder]
    found = [Command("Search again; the folder goes on where it is", shlex.join(tune))]
    if run.recommended is not None:
        made = os.path.join(folder, MODEL)
        shape = [word for pair in asked.get("shape", ()) for word in ("--shape", pair)]
        again = ["tokenrt", "reduce", model, "--plan", os.path.join(folder, BEST), *shape, "-o", made]
        found += [
            Command("Make the reduced model of its plan", shlex.join(again)),
            Command("Check it", shlex.join(["tokenrt", "check", model, made, "--data", asked["data"]])),
            Command("Time it", shlex.join(["tokenrt", "profile", made, "--original", model])),
        ]
    return [*found, Command("Make this page", shlex.join(["tokenrt", "report", folder, "-o", "report.html"]))]


def _options(asked: Mapping[str, Any]) -> Iterator[str]:
    for name in ("samples", "site", "grid", "protect", "span", "shape", "threads"):
        values = asked.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            yield from (f"--{name}", str(value))
