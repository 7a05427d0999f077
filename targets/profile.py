"""Target profiles: one TOML file a target, every fact with its source and date, unknown facts "unverified".

A folder named by the environment variable TOKENRT_TARGETS adds profiles; a name of its own wins over ours.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from tokenrt.errors import TargetError
from tokenrt.passes.decompose import FORMS
from tokenrt.passes.legalize import Accepts

FOLDER_VARIABLE = "TOKENRT_TARGETS"
UNVERIFIED = "unverified"
BUILDERS = ("tensorrt-rtx", "none")
PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4", "int4")

Value = Any
"""str | bool | int | list[str] | list[int], as the fact's own check says."""


def _text(value: Value) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _flag(value: Value) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _count(value: Value) -> str | None:
    return (
        None if isinstance(value, int) and not isinstance(value, bool) and value > 0 else "a number above 0"
    )


def _texts(value: Value, allowed: tuple[str, ...] = ()) -> str | None:
    good = isinstance(value, list) and all(
        isinstance(item, str) and (not allowed or item in allowed) for item in value
    )
    return None if good else f"a list out of {', '.join(allowed)}" if allowed else "a list of texts"


def _range(value: Value) -> str | None:
    good = isinstance(value, list) and len(value) == 2 and all(_count(item) is None for item in value)
    return None if good and value[0] <= value[1] else "a list of two numbers, lowest first"


def _capability(value: Value) -> str | None:
    parts = value.split(".") if isinstance(value, str) else []
    good = len(parts) == 2 and all(part.isdecimal() for part in parts)
    return None if good else 'a text such as "8.9"'


FACTS: Mapping[str, Callable[[Value], str | None]] = {
    "compute_capability": _capability,
    "architecture": _text,
    "gpus": _texts,
    "precisions": partial(_texts, allowed=PRECISIONS),
    "plugins": _flag,
    "functions": _flag,
    "function_nested_attributes": _flag,
    "function_optional_values": _flag,
    "empty_constants": _flag,
    "contrib_operators": _flag,
    "attention": partial(_texts, allowed=PRECISIONS),
    "attention_width": _range,
    "attention_single_query_heads": _count,
    "attention_forms": partial(_texts, allowed=tuple(FORMS)),
    "scatter_reduction": _flag,
    "top_k": _count,
}
"""Every fact a profile may state, and its check: None when the value is right, else what was expected."""

REQUIRED = ("precisions", "plugins", "functions", "contrib_operators", "attention")
REQUIRED_BY_BUILDER = {"tensorrt-rtx": ("compute_capability",), "none": ()}


@dataclass(frozen=True)
class Fact:
    """One thing known of a target, with where it is from and when it was looked up or measured."""

    value: Value
    source: str
    date: date
    note: str = ""

    @property
    def known(self) -> bool:
        return bool(self.value != UNVERIFIED)

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "source": self.source, "date": str(self.date), "note": self.note}


@dataclass(frozen=True)
class Target:
    """A device and runtime models are built for."""

    name: str
    summary: str
    builder: str
    facts: Mapping[str, Fact]
    path: Path

    def fact(self, name: str, default: Value = None) -> Value:
        """The value of a fact, or `default` where the profile leaves it out or unverified."""
        found = self.facts.get(name)
        return found.value if found is not None and found.known else default

    @property
    def compute_capability(self) -> str | None:
        value: str | None = self.fact("compute_capability")
        return value

    def accepts(self) -> Accepts:
        """What legalization has to keep to. What is unverified counts as not accepted."""
        width = self.fact("attention_width") if "attention_width" in self.facts else None
        return Accepts(
            functions=self.fact("functions", False),
            nested_attributes=self._unless_stated("function_nested_attributes"),
            optional_values=self._unless_stated("function_optional_values"),
            empty_constants=self._unless_stated("empty_constants"),
            plugins=self.fact("plugins", False),
            contrib=self.fact("contrib_operators", False),
            attention=frozenset(self.fact("attention", ())),
            attention_width=None if width is None else (width[0], width[1]),
            attention_single_query_heads=self.fact("attention_single_query_heads", 1),
            attention_forms=frozenset(
                self.fact("attention_forms", ()) if "attention_forms" in self.facts else FORMS
            ),
        )

    def _unless_stated(self, name: str) -> bool:
        return bool(self.fact(name, False)) if name in self.facts else True

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "builder": self.builder,
            "facts": {name: fact.as_dict() for name, fact in self.facts.items()},
        }

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("fact", "value", "source", "date", title=f"{self.name}: {self.summary}", box=None)
        for name, fact in self.facts.items():
            value = ", ".join(map(str, fact.value)) if isinstance(fact.value, list) else str(fact.value)
            table.add_row(name, value or "none", fact.source, str(fact.date))
        return table


def targets() -> list[Target]:
    """Every target, ours and those of the folder TOKENRT_TARGETS names, by name.

    Raises: TargetError naming the file and key that is wrong.
    """
    found = {
        target.name: target for folder in _folders() for target in map(read, sorted(folder.glob("*.toml")))
    }
    return [found[name] for name in sorted(found, key=_natural)]


def load(name: str) -> Target:
    """The target of this name. Raises: TargetError with the names there are."""
    known = {target.name: target for target in targets()}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise TargetError(f"no target {name!r}: {hint}there are {', '.join(known)}")


def read(path: Path) -> Target:
    """One profile. Raises: TargetError naming the file, the key, what was found and what was expected."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise TargetError(f"{path}: not a readable TOML file: {cause}") from cause
    for key in ("name", "summary", "builder", "facts"):
        if key not in content:
            raise TargetError(f"{path}: the key {key!r} is missing")
    if extra := content.keys() - {"name", "summary", "builder", "facts"}:
        raise TargetError(f"{path}: unknown key {sorted(extra)[0]!r}; facts go into [facts.NAME] tables")
    for key in ("name", "summary", "builder"):
        if expected := _text(content[key]):
            raise TargetError(f"{path}: {key} is {content[key]!r}, expected {expected}")
    if content["name"] != path.stem:
        raise TargetError(f"{path}: name is {content['name']!r}, expected the file's own, {path.stem!r}")
    if content["builder"] not in BUILDERS:
        raise TargetError(f"{path}: builder is {content['builder']!r}, expected {' or '.join(BUILDERS)}")
    if not isinstance(content["facts"], dict):
        raise TargetError(f"{path}: facts is {content['facts']!r}, expected [facts.NAME] tables")
    facts = {name: _fact(path, name, entry) for name, entry in content["facts"].items()}
    for name in (*REQUIRED, *REQUIRED_BY_BUILDER[content["builder"]]):
        if name not in facts:
            raise TargetError(f'{path}: [facts.{name}] is missing; "{UNVERIFIED}" is a value it may have')
    return Target(content["name"], content["summary"], content["builder"], facts, path)


def _fact(path: Path, name: str, entry: Any) -> Fact:
    where = f"{path}: facts.{name}"
    if name not in FACTS:
        close = difflib.get_close_matches(name, FACTS, n=1)
        raise TargetError(f"{where}: no such fact{f'; did you mean {close[0]}?' if close else ''}")
    if not isinstance(entry, dict):
        raise TargetError(f"{where} is {entry!r}, expected a table with value, source and date")
    for key in ("value", "source", "date"):
        if key not in entry:
            raise TargetError(f"{where}.{key} is missing; every fact has a value, a source and a date")
    if extra := entry.keys() - {"value", "source", "date", "note"}:
        raise TargetError(f"{where}.{sorted(extra)[0]}: unknown key; expected value, source, date, note")
    if entry["value"] != UNVERIFIED and (expected := FACTS[name](entry["value"])):
        raise TargetError(f'{where}.value is {entry["value"]!r}, expected {expected}, or "{UNVERIFIED}"')
    if expected := _text(entry["source"]):
        raise TargetError(f"{where}.source is {entry['source']!r}, expected {expected}")
    if type(entry["date"]) is not date:
        raise TargetError(f"{where}.date is {entry['date']!r}, expected a date such as 2026-11-22, unquoted")
    return Fact(entry["value"], entry["source"], entry["date"], str(entry.get("note", "")))


def _natural(name: str) -> list[tuple[int, str]]:
    """Order rtx-sm80 before rtx-sm120."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _folders() -> list[Path]:
    folders = [Path(__file__).parent]
    if extra := os.environ.get(FOLDER_VARIABLE):
        if not Path(extra).is_dir():
            raise TargetError(f"{FOLDER_VARIABLE} is {extra!r}, which is not a directory of .toml profiles")
        folders.append(Path(extra))
    return folders
