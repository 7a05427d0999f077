"""All benchmarks, as `make bench` runs them: prints tables and writes the results files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import (
    agreement,
    costs,
    flops,
    half,
    large,
    method_models,
    methods,
    results,
)
from tokenrt.perf.bench.cpu import greedy, latency, tome
from tokenrt.perf.bench.encoders import speech, text
from tokenrt.perf.bench.front import demonstration
from tokenrt.perf.bench.gpu import engine_layers
from tokenrt.perf.bench.quality import kept, quality
from tokenrt.perf.bench.towers import towers
from tokenrt.perf.bench.tuned import tuned


class Bench(Protocol):
    """What a benchmark returns."""

    def as_dict(self) -> dict[str, Any]: ...

    def page(self, where: Mapping[str, Any]) -> str: ...


# name -> (name of the results files, benchmark)
BENCHES: dict[str, tuple[str, Callable[[], Bench]]] = {
    "demo": ("demo", demonstration.run),
    "tome": ("tome_cost", tome.run),
    "greedy": ("greedy", greedy.run),
    "agreement": ("profile_agreement", agreement.run),
    "engine_layers": ("engine_layers", engine_layers.run),
    "half": ("half_precision", half.run),
    "large": ("large_models", large.run),
    "flops": ("flops", flops.run),
    "costs": ("plan_costs", costs.run),
    "latency": ("plan_latency", latency.run),
    "quality": ("quality", quality.run),
    "kept": ("kept_tokens", kept.run),
    "text": ("text", text.run),
    "speech": ("speech", speech.run),
    "methods": ("method_costs", methods.run),
    "models": ("method_models", method_models.run),
    "dense": ("method_models_dense", method_models.run_dense),
    "towers": ("towers", towers.run),
    "tuned": ("tuned", tuned.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, or all; 2 when one cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tokenrt.perf.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; all when left out")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the results files")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHES)}")
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    console = console if console.is_terminal else Console(markup=False, emoji=False, width=140)
    for name in asked.names or BENCHES:
        stem, run = BENCHES[name]
        try:
            report = run()
        except TokenrtError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        console.print(report)
        where = results.circumstances()
        paths = results.write(asked.out, stem, {**where, **report.as_dict()}, report.page(where))
        console.print(f"written: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
