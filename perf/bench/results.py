"""Results files: what was measured, with what, as JSON and as a Markdown page that is made from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.files import atomic
from tokenrt.perf.demo.subject import version
from tokenrt.perf.profile.machine import processor
from tokenrt.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxslim", "torch", "timm", "transformers")


def circumstances(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """When, on what and with which versions something was measured."""
    found = {package: version(package) for package in packages}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "tokenrt": __version__,
            **{package: number for package, number in found.items() if number is not None},
        },
    }


def write(folder: Path, name: str, data: Mapping[str, Any], page: str) -> tuple[Path, Path]:
    """Write `<name>.json` and `<name>.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.json", folder / f"{name}.md"
    texts = json.dumps(data, indent=2, allow_nan=False) + "\n", page.rstrip() + "\n"
    for path, text in zip(paths, texts, strict=True):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a heading that ends in ':' has its column to the right."""
    rule = ["---:" if cell.endswith(":") else "---" for cell in head]
    lines = [[cell.removesuffix(":") for cell in head], rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """The same table for a terminal."""
    from rich.table import Table

    made = Table(title=title)
    for cell in head:
        made.add_column(cell.removesuffix(":"), justify="right" if cell.endswith(":") else "left")
    for row in rows:
        made.add_row(*row)
    return made


def told(where: Mapping[str, Any]) -> str:
    """The circumstances in one sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    return f"{where['date']}, {where['processor']}, {where['processors']} processors; {versions}."
