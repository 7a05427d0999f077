"""`make gpu`: what only a GPU can tell, in one run of a few minutes, as JSON with the card's name.

The tests of tests/gpu, every operator against its reference and the model of cost, and whole models with and without
reductions. `--host` is a dry run of all steps on the CPU at tiny sizes: it proves the script and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic
from tokenrt.perf.bench import results
from tokenrt.perf.bench.gpu import models, operators, suite
from tokenrt.perf.bench.gpu.card import Card, card
from tokenrt.perf.bench.gpu.deadline import Deadline

MINUTES = 8.0
MEASURED, DRY = "measured on this card", "dry run on a CPU: no figure here is of a GPU"

Step = Callable[[Card | None, Deadline], dict[str, Any]]
STEPS: Mapping[str, Step] = {"operators": operators.run, "tests": suite.run, "models": models.run}


def run(found: Card | None, minutes: float, names: Sequence[str]) -> dict[str, Any]:
    """Run the steps, one after the other; one that fails does not end the others."""
    deadline, steps = Deadline(60 * minutes), {}
    for name in names:
        begin = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            steps[name] = STEPS[name](found, deadline)
        except TokenrtError as error:
            steps[name] = {"failed": 1, "complete": False, "error": str(error)}
        steps[name]["seconds"] = round(time.monotonic() - begin, 1)
    return {
        "evidence": DRY if found is None else MEASURED,
        "card": None if found is None else vars(found),
        **results.circumstances(),
        "steps": steps,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the results; 1 where something failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tokenrt.perf.bench.gpu", description=__doc__)
    parser.add_argument("--host", action="store_true", help="dry run on the CPU at tiny sizes")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what would begin later is left out")
    parser.add_argument("--only", choices=STEPS, action="append", help="a step; all when left out")
    asked = parser.parse_args(arguments)
    found = None if asked.host else card()
    if found is None and not asked.host:
        print("error: no NVIDIA GPU here; --host runs all steps on the CPU at tiny sizes", file=sys.stderr)
        return 2
    told = run(found, asked.minutes, asked.only or [*STEPS])
    name = "host" if found is None else re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-")
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"gpu-{name}.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for step, result in told["steps"].items():
        whole = "" if result["complete"] else ", not complete"
        print(f"{step}: {result['failed']} failed{whole}, {result['seconds']} s")
    print(f"written: {path} ({told['evidence']})")
    return int(any(result["failed"] for result in told["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
