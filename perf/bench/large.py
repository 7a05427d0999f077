"""Time and memory of the rewrite itself: a ViT-L in one file, and a ViT-H whose weights lie beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import results
from tokenrt.perf.bench.models import VIT_L, bytes_of, cache, exported
from tokenrt.perf.bench.plain_vit import PlainViT

REMOVED = 4
SECONDS, MEMORY = 20.0, 2.5
"""The most that analysis and rewrite of ViT-L may take, and the most memory in times of the model's bytes."""

CODE = """
import json, resource, sys, time
import tokenrt
started = time.perf_counter()
output = sys.argv[2] or None
done = tokenrt.reduce(sys.argv[1], method="tome", budget=tokenrt.Budget.remove(int(sys.argv[3])), output=output)
seconds = time.perf_counter() - started
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
counts = done.plan.counts()
print(json.dumps({"seconds": seconds, "peak": peak, "tokens": [counts[0], counts[-1]], "macs": done.plan.macs_before}))
"""

RUN = """
import json, sys
import numpy, tokenrt
from tokenrt.perf.profile import timing
opened = timing.session(sys.argv[1])
found = opened.run(None, timing.feeds(opened, 1))[0]
print(json.dumps({"shape": list(found.shape), "finite": bool(numpy.isfinite(found).all())}))
"""


@dataclass(frozen=True)
class Large:
    """One model: seconds and peak resident bytes of a process that reduces it, without and with writing it.

    ran: the shape of the output of the reduced model in ONNX Runtime.
    """

    name: str
    bytes: int
    macs: int
    tokens: tuple[int, int]
    seconds: float
    peak: int
    seconds_written: float
    peak_written: int
    ran: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        rounded = {key: round(value, 2) for key, value in vars(self).items() if isinstance(value, float)}
        return {**vars(self), **rounded, "tokens": list(self.tokens), "ran": list(self.ran)}

    def cells(self) -> list[str]:
        return [
            self.name,
            f"{self.bytes / 1e9:.2f}",
            f"{self.macs / 1e9:.1f}",
            f"{self.tokens[0]} to {self.tokens[1]}",
            f"{self.seconds:.1f}",
            f"{self.peak / 1e9:.2f} ({self.peak / self.bytes:.2f}x)",
            f"{self.seconds_written:.1f}",
            f"{self.peak_written / 1e9:.2f} ({self.peak_written / self.bytes:.2f}x)",
            "x".join(map(str, self.ran)),
        ]


HEAD = (
    "model",
    "GB:",
    "GMACs:",
    "tokens",
    "analysis + rewrite, s:",
    "peak, GB:",
    "with writing, s:",
    "peak, GB:",
    "ran, output",
)


@dataclass(frozen=True)
class LargeReport:
    """The models that were measured."""

    models: Sequence[Large]

    def as_dict(self) -> dict[str, Any]:
        limits = {"seconds": SECONDS, "peak_in_model_bytes": MEMORY}
        return {
            "removed_per_block": REMOVED,
            "limits_of_vit_l": limits,
            "models": [one.as_dict() for one in self.models],
        }

    def __rich__(self) -> Any:
        title = f"tome --remove {REMOVED}; ViT-L: at most {SECONDS:.0f} s and {MEMORY} x its bytes"
        return results.shown(HEAD, (one.cells() for one in self.models), title)

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        told = (
            f"Reduction by `tome --remove {REMOVED}`, each in a process of its own; peak is its largest resident size. The "
            f"limits for ViT-L (one file): {SECONDS:.0f} s and {MEMORY} times the model's bytes. ViT-H has its weights in a file "
            "beside it, which the rewrite never reads into memory. Made by `python -m tokenrt.perf.bench large`."
        )
        table = results.table(HEAD, [one.cells() for one in self.models])
        return "\n\n".join(["# Large models", told, table, results.told(where)])


def run() -> LargeReport:
    """Measure both models; they are made on the first call. Raises: TokenrtError where a step fails."""
    path = cache() / "bench" / "plain-vit-h.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"writing {path}", file=sys.stderr)
        PlainViT().write(path)
    return LargeReport((measure("ViT-L/16", exported(VIT_L)), measure("ViT-H/14", path)))


def measure(name: str, path: Path, removed: int = REMOVED) -> Large:
    """Reduce a model twice, once writing the result, and run that."""
    with tempfile.TemporaryDirectory(prefix="tokenrt-bench-") as folder:
        output = str(Path(folder) / "reduced.onnx")
        plain = _child(CODE, str(path), "", str(removed))
        written = _child(CODE, str(path), output, str(removed))
        ran = _child(RUN, output)
    if not ran["finite"]:
        raise TokenrtError(f"{name}: the reduced model gives numbers that are not finite")
    return Large(
        name,
        bytes_of(path),
        plain["macs"],
        (plain["tokens"][0], plain["tokens"][1]),
        plain["seconds"],
        plain["peak"],
        written["seconds"],
        written["peak"],
        tuple(ran["shape"]),
    )


def _child(code: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TokenrtError(
            f"a measurement failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
