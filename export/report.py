"""What an export did: the model's interface, how near it is to torch, and the time it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """One input or output: name, element type, and its axes, named where they may change."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ParityRow:
    """One output at one batch size, torch against ONNX Runtime.

    `difference` is the largest absolute difference and `tolerance` what it may be: the limit of the dtype
    times the largest magnitude of the torch output where that exceeds 1. `cosine` is over all elements.
    """

    output: str
    batch: int
    difference: float
    tolerance: float
    cosine: float
    least_cosine: float

    @property
    def passed(self) -> bool:
        """True where both measures hold; a NaN fails."""
        return self.difference <= self.tolerance and self.cosine >= self.least_cosine

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-able values."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class ExportReport:
    """Result of `tokenrt.export`; the model is in `output`."""

    source: str
    model: str
    weights: str
    output: Path
    opset: int
    exporter: str
    dtype: str
    batch: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: int
    parameters: int
    parity: tuple[ParityRow, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values; a dynamic batch is null."""
        return {
            **asdict(self),
            "output": str(self.output),
            "inputs": [asdict(info) for info in self.inputs],
            "outputs": [asdict(info) for info in self.outputs],
            "parity": [row.as_dict() for row in self.parity],
            "notes": list(self.notes),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for name, value in self._facts():
            facts.add_row(name, Text(value))
        parity = Table(title="torch against ONNX Runtime (CPU)", title_justify="left")
        parity.add_column("output", overflow="fold")
        for column in ("batch", "max abs difference", "allowed", "cosine"):
            parity.add_column(column, justify="right")
        parity.add_column("verdict")
        for row in self.parity:
            parity.add_row(
                Text(row.output),
                str(row.batch),
                f"{row.difference:.2e}",
                f"{row.tolerance:.1e}",
                f"{row.cosine:.6f}",
                Text("equal", "green") if row.passed else Text("differs", "red"),
            )
        return Group(facts, parity, *(Text(f"note: {note}", "yellow") for note in self.notes))

    def _facts(self) -> list[tuple[str, str]]:
        batch = "dynamic" if self.batch is None else str(self.batch)
        return [
            ("model", f"{self.model} from {self.source}"),
            ("weights", f"{self.weights}, {self.parameters / 1e6:.1f} M, {self.dtype}"),
            ("written", str(self.output)),
            ("graph", f"opset {self.opset}, {self.exporter} exporter, {self.nodes} nodes, batch {batch}"),
            ("inputs", "\n".join(map(str, self.inputs))),
            ("outputs", "\n".join(map(str, self.outputs))),
            ("time", f"{self.seconds:.1f} s"),
        ]
