"""What is told of an engine that was built; the manifest beside it holds the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.passes.graph.functions import Change
from tokenrt.targets.engines.batch import Batch
from tokenrt.targets.rtx.builder import Port


@dataclass(frozen=True)
class BuildReport:
    """An engine that was built, and everything that went into it."""

    engine: Path
    manifest: Path
    target: str
    compute_capability: str
    model: str
    model_sha256: str
    batch: Batch | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    seconds: float
    engine_bytes: int
    engine_sha256: str
    key: str
    reused: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "engine": str(self.engine),
            "manifest": str(self.manifest),
            "target": self.target,
            "compute_capability": self.compute_capability,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "batch": None if self.batch is None else list(self.batch),
            "inputs": [port.as_dict() for port in self.inputs],
            "outputs": [port.as_dict() for port in self.outputs],
            "changes": [change.as_dict() for change in self.changes],
            "warnings": list(self.warnings),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "seconds": round(self.seconds, 3),
            "engine_bytes": self.engine_bytes,
            "engine_sha256": self.engine_sha256,
            "key": self.key,
            "reused": self.reused,
        }

    @classmethod
    def read(cls, path: Path) -> BuildReport:
        """The report a manifest holds."""
        told = json.loads(path.read_text(encoding="utf-8"))
        ports = {
            side: tuple(
                Port(port["name"], port["dtype"], tuple(map(tuple, port["shapes"]))) for port in told[side]
            )
            for side in ("inputs", "outputs")
        }
        told |= ports
        told["engine"], told["manifest"] = Path(told["engine"]), Path(told["manifest"])
        told["batch"] = None if told["batch"] is None else tuple(told["batch"])
        told["changes"] = tuple(Change(**change) for change in told["changes"])
        told["warnings"] = tuple(told["warnings"])
        return cls(**told)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        from tokenrt.passes.forms.legalize import rows

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("engine", f"{self.engine} ({self.engine_bytes / 2**20:.1f} MiB)")
        table.add_row("target", f"{self.target}, compute capability {self.compute_capability}")
        table.add_row("batch", "as in the model" if self.batch is None else ":".join(map(str, self.batch)))
        table.add_row("time", "none: it was there already" if self.reused else f"{self.seconds:.1f} s")
        table.add_row("manifest", str(self.manifest))
        return Group(table, rows(self.changes)) if self.changes else table
