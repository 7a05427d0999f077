"""What a plan file holds: the sites of blocks, the counts of transformers, and how each entry is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenrt.errors import PlanError
from tokenrt.passes.planning.outputs.cache_site import CACHE
from tokenrt.passes.planning.outputs.site import OUTPUT, written

Where = Literal["before-block", "around-attention", "after-attention", "after-block"]
PLACES: tuple[Where, ...] = ("around-attention", "after-attention", "after-block")
BEFORE: Where = "before-block"
"""The place of methods whose tokens come from the step before, and of no others."""
EVERY: tuple[Where, ...] = (BEFORE, *PLACES)
COUNTS = ("tokens", "protected", "grid", "blocks", "unit")
SITE = ("transformer", "block", "where", "tokens", "method", "options")


@dataclass(frozen=True)
class PlannedSite:
    """One reduction: `tokens` stay behind `where` of block `block` of a transformer (both count from 0).

    method, options: its own; empty for the plan's. Options of its own stand for all of the plan's.
    """

    block: int
    where: Where
    tokens: int
    transformer: int = 0
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self, several: bool) -> dict[str, Any]:
        """As files have it; several: there is more than one transformer, so that this one's is named."""
        return {
            **({"transformer": self.transformer} if several else {}),
            "block": self.block,
            "where": self.where,
            "tokens": self.tokens,
            **({"method": self.method} if self.method else {}),
            **({"options": written(self.options)} if self.options else {}),
        }

    def spec(self) -> str:
        """As one part of a plan's line: 3+:120 behind block 3, 2/0:96 in transformer 2, 6:80 by evit."""
        signs = {"after-block": "+", "around-attention": "~", BEFORE: "^"}
        inside = f"{self.transformer}/" if self.transformer else ""
        by = f" by {self.method}" if self.method else ""
        return f"{inside}{self.block}{signs.get(self.where, '')}:{self.tokens}{by}"


@dataclass(frozen=True)
class Transformer:
    """The tokens of one transformer of a model: N, the protected among them, its blocks, the grid where it is known.

    unit: tokens leave in whole units of so many; the grid is then that of the units.
    """

    tokens: int
    protect: int
    blocks: int
    grid: tuple[int, ...] | None = None
    unit: int = 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "protected": self.protect,
            "grid": list(self.grid) if self.grid else None,
            "blocks": self.blocks,
            **({"unit": self.unit} if self.unit > 1 else {}),
        }


def read(file: Path, data: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = data.get(key, default)
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PlanError(f"plan {file}: {key!r} must be {kind.__name__}, found {value!r}")
    return value


def positive(file: Path, data: Mapping[str, Any], key: str) -> int:
    """A number of 1 or more, 1 where it is not said."""
    found: int = read(file, data, key, int, 1)
    if found < 1:
        raise PlanError(f"plan {file}: {key!r} must be 1 or more, found {found}")
    return found


def transformers(file: Path, data: Mapping[str, Any]) -> list[Transformer]:
    """The counts of every transformer: tables [[transformer]], or the plan's own entries where there is one."""
    listed = read(file, data, "transformer", list, [])
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict):
            raise PlanError(
                f"plan {file}: transformer {number} must be a table [[transformer]], found {entry!r}"
            )
        known(file, f"transformer {number}", entry, COUNTS)
    twice = [key for key in COUNTS if listed and key in data]
    if twice:
        raise PlanError(
            f"plan {file}: {', '.join(twice)} stand beside [[transformer]] tables, which say them; drop these"
        )
    return [
        Transformer(
            read(file, entry, "tokens", int),
            read(file, entry, "protected", int),
            read(file, entry, "blocks", int),
            grid(file, entry.get("grid")),
            positive(file, entry, "unit"),
        )
        for entry in listed or [data]
    ]


def tables(entries: Sequence[Mapping[str, Any]]) -> Any:
    """TOML tables of these entries, without those that are None."""
    import tomlkit

    tables = tomlkit.aot()
    for entry in entries:
        table = tomlkit.table()
        table.update({key: value for key, value in entry.items() if value is not None})
        tables.append(table)
    return tables


def grid(file: Path, entry: Any) -> tuple[int, ...] | None:
    if entry is None:
        return None
    if not isinstance(entry, list) or any(type(size) is not int for size in entry):
        raise PlanError(f"plan {file}: 'grid' must be a list of whole numbers, found {entry!r}")
    return tuple(entry)


def known(file: Path, what: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in entry:
        if key not in keys:
            raise PlanError(f"plan {file}: {what} has no entry {key!r}; its entries: {', '.join(keys)}")


def at_output(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("where") == OUTPUT


def at_cache(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("where") == CACHE


def site(file: Path, number: int, entry: Any, transformers: int) -> PlannedSite:
    if not isinstance(entry, dict):
        raise PlanError(f"plan {file}: site {number} must be a table [[site]], found {entry!r}")
    known(file, f"site {number}", entry, SITE)
    where = entry.get("where", "after-attention")
    if where not in EVERY:
        known_places = ", ".join((*EVERY, OUTPUT, CACHE))
        raise PlanError(f"plan {file}: site {number}: where={where!r} is not one of {known_places}")
    which = read(file, entry, "transformer", int, 0)
    if not 0 <= which < transformers:
        raise PlanError(
            f"plan {file}: site {number} is in transformer {which}, and the plan lists {transformers}, counted from 0"
        )
    return PlannedSite(
        read(file, entry, "block", int),
        where,
        read(file, entry, "tokens", int),
        which,
        read(file, entry, "method", str, ""),
        read(file, entry, "options", dict, {}),
    )
