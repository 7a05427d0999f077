"""What became of each tower, method and share of tokens, and the page that tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenrt.perf.bench import results
from tokenrt.perf.bench.engines import YES

NEAR = 1e-5
"""Largest difference of a row that is left from that of the full output, as a share of the output's largest value."""


@dataclass(frozen=True)
class Cell:
    """One method at one share of the tokens of one file.

    rows: the largest difference of the rows that are left, as a share of the full output's largest value, or in words what is
    wrong. checked, engine: yes, or what `check` and the builder said; no engine where none was asked for.
    """

    tower: str
    opset: int
    method: str
    share: float
    before: int = 0
    after: int = 0
    rows: float | str = 0.0
    checked: str = ""
    engine: str | None = None
    refused: str = ""

    def refuse(self, reason: str) -> Cell:
        return replace(self, refused=reason)

    def found(self, before: int, after: int, rows: float | str, checked: str, engine: str | None) -> Cell:
        return replace(self, before=before, after=after, rows=rows, checked=checked, engine=engine)

    @property
    def wrong(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        if self.refused:
            return ()
        rows = f"rows differ by {self.rows:.1e}" if isinstance(self.rows, float) else self.rows
        said = ("" if isinstance(self.rows, float) and self.rows <= NEAR else rows, self.checked, self.engine)
        return tuple(each for each in said if each and each != YES)

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused}"
        return f"{self.before} -> {self.after} {'; '.join(self.wrong) or YES}"

    def as_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {name: getattr(self, name) for name in ("tower", "opset", "method")}
        told["share"] = round(self.share, 3)
        if self.refused:
            return told | {"refused": self.refused}
        return told | {
            "tokens": [self.before, self.after],
            "rows": self.rows,
            "check": self.checked,
            "engine": self.engine,
        }


@dataclass(frozen=True)
class Towers:
    """All cells, the builder's version and the target the engines are for."""

    cells: tuple[Cell, ...]
    builder: str
    target: str

    @property
    def ok(self) -> bool:
        return not any(cell.wrong for cell in self.cells)

    def as_dict(self) -> dict[str, Any]:
        told = {"builder": self.builder, "target": self.target}
        return {**told, "cells": [cell.as_dict() for cell in self.cells]}

    def __rich__(self) -> Any:
        head, lines, _ = self._table()
        return results.shown(head, lines)

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        head, lines, notes = self._table()
        shares = ", ".join(f"{share:.0%}" for share in dict.fromkeys(cell.share for cell in self.cells))
        told = "Small seeded vision parts, exported by `tokenrt export --part vision` at each operator set; "
        told += f"{shares} of the tokens of their output stay. Yes means, at each of these shares: the output has as many rows "
        told += f"as were planned; they are rows of the full output, to {NEAR:.0e} of its largest value (where tokens are "
        told += "merged, the rows that stand for one); `tokenrt check` passes; and TensorRT-RTX "
        told += f"{self.builder or '(not installed)'} builds the float16 form for one picture or clip into an engine for "
        told += f"`{self.target}` (compute capabilities 8.0, 8.6, 8.9 and 12.0), on a machine without a GPU: compiled, not run. "
        told += "Weights are random, so nothing is said of how good a choice is. Made by `python -m tokenrt.perf.bench towers`."
        parts = [
            "# Vision parts through methods at an output",
            told,
            results.table(head, lines),
        ]
        parts += ["\n".join(f"{number}. {text}" for text, number in notes.items())] if notes else []
        rows = [cell.rows for cell in self.cells if not cell.refused and isinstance(cell.rows, float)]
        told = f"{len(self.cells)} reductions, {sum(bool(cell.refused) for cell in self.cells)} of them refused, "
        told += f"{sum(bool(cell.wrong) for cell in self.cells)} wrong. Largest difference of a row: {max(rows, default=0):.1e}."
        return "\n\n".join([*parts, told, results.told(where)])

    def _table(self) -> tuple[list[str], list[list[str]], dict[str, int]]:
        """Head, a line a file, and the notes that its cells refer to by number."""
        names = list(dict.fromkeys(cell.method for cell in self.cells))
        notes: dict[str, int] = {}
        lines = []
        for tower, opset in dict.fromkeys((cell.tower, cell.opset) for cell in self.cells):
            own = [cell for cell in self.cells if (cell.tower, cell.opset) == (tower, opset)]
            tokens = {str(cell.before): None for cell in own if not cell.refused}
            line = [tower, str(opset), ", ".join(tokens) or "-"]
            line += [_said([cell for cell in own if cell.method == name], notes) for name in names]
            lines.append(line)
        return ["tower", "opset:", "tokens:", *(f"`{name}`" for name in names)], lines, notes


def _said(cells: list[Cell], notes: dict[str, int]) -> str:
    """Yes where all holds at every share, else what does not, by the numbers of the notes."""
    bad = []
    for cell in cells:
        for text in [f"refused: {cell.refused}"] if cell.refused else cell.wrong:
            bad.append((cell, notes.setdefault(text, len(notes) + 1)))
    if not bad:
        return YES
    numbers = ", ".join(dict.fromkeys(f"{number}" for _, number in bad))
    if len({cell.share for cell, _ in bad}) == len(cells):
        return f"{'refused' if all(cell.refused for cell, _ in bad) else 'no'} ({numbers})"
    return f"{', '.join(dict.fromkeys(f'{cell.share:.0%}' for cell, _ in bad))}: no ({numbers})"
