"""Target profiles: one TOML file a target, every fact with its source and date, unknown facts "unverified".

A profile may extend others (`extends = ["l4", "_tensorrt-10.15"]`): it takes their facts, later ones and its own win.
Files whose name begins with "_" are to be extended only. A folder named by the environment variable
TOKENRT_TARGETS, or by the caller, adds profiles; a name of its own wins over ours.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tokenrt.errors import TargetError
from tokenrt.passes.forms.decompose import FORMS
from tokenrt.passes.forms.legalize import Accepts
from tokenrt.plugins.contracts import misfit
from tokenrt.targets.profiles.facts import (
    FACTS,
    GRAPH,
    HARDWARE,
    SOFTWARE,
    UNVERIFIED,
    Fact,
    Value,
    text,
)

FOLDER_VARIABLE = "TOKENRT_TARGETS"
BUILDERS = ("tensorrt-rtx", "tensorrt", "none")
BASE, RELEASE = "_", "_tensorrt-"
"""How the names of profiles begin that are only extended, and of those that hold a TensorRT release."""

KEYS = ("name", "summary", "builder", "extends", "facts")
REQUIRED = ("precisions", "plugins", "functions", "contrib_operators", "attention")
REQUIRED_BY_BUILDER = {
    "tensorrt-rtx": (),
    "tensorrt": ("compute_capability", "tensorrt", "plugin_or_function"),
    "none": (),
}


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
        """The one capability of the device; None where there is none, or an engine serves several."""
        value: str | None = self.fact("compute_capability")
        return value

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The capabilities an engine is built for."""
        single = self.compute_capability
        return (single,) if single is not None else tuple(self.fact("compute_capabilities", ()))

    @property
    def tensorrt(self) -> tuple[int, ...] | None:
        """The TensorRT release, as numbers."""
        value = self.fact("tensorrt")
        return None if value is None else tuple(map(int, value.split(".")))

    def accepts(self) -> Accepts:
        """What legalization has to keep to. What is unverified counts as not accepted."""
        width = self.fact("attention_width") if "attention_width" in self.facts else None
        return Accepts(
            functions=self.fact("functions", False),
            nested_attributes=self._unless_stated("function_nested_attributes"),
            optional_values=self._unless_stated("function_optional_values"),
            empty_constants=self._unless_stated("empty_constants"),
            plugins=self.fact("plugins", False),
            plugin_refuses=misfit,
            plugin_wins=self.fact("plugin_or_function") == "plugin",
            contrib=self.fact("contrib_operators", False),
            opset=self.fact("opset"),
            gpu="compute_capability" in self.facts or "compute_capabilities" in self.facts,
            top_k=self.fact("top_k"),
            any_names=not self.fact("plain_names", False),
            attention=frozenset(self.fact("attention", ())),
            attention_flat=self._unless_stated("attention_flat"),
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
        from rich.console import Group
        from rich.table import Table

        sources: dict[str, int] = {}
        table = Table(title=f"{self.name}: {self.summary}", box=None, title_justify="left", pad_edge=False)
        table.add_column("fact", no_wrap=True)
        table.add_column("value", overflow="fold")
        table.add_column("source")
        for group in (HARDWARE, SOFTWARE, GRAPH):
            for name in filter(self.facts.__contains__, group):
                fact = self.facts[name]
                origin = f"{fact.source}, {fact.date}"
                table.add_row(name, fact.text, f"[{sources.setdefault(origin, len(sources) + 1)}]")
        legend = "\n".join(f"[{number}] {origin}" for origin, number in sources.items())
        return Group(table, "", _plain(legend))


def targets(folder: Path | None = None) -> list[Target]:
    """Every target by name: ours, those of the folder TOKENRT_TARGETS names, and those of `folder`.

    Raises: TargetError naming the file and key that is wrong.
    """
    found = {
        path.stem: path
        for place in _folders(folder)
        for path in sorted(place.glob("*.toml"))
        if not path.name.startswith(BASE)
    }
    return [read(found[name]) for name in sorted(found, key=_natural)]


def load(name: str, *, tensorrt: str | None = None, folder: Path | None = None) -> Target:
    """The target of this name; `tensorrt` puts another release on it, as "10.15".

    Raises: TargetError with the names, or the releases, there are.
    """
    known = {target.name: target for target in targets(folder)}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise TargetError(f"no target {name!r}: {hint}there are {', '.join(known)}")
    target = known[name]
    if tensorrt is None:
        return target
    if target.builder != "tensorrt":
        raise TargetError(f"{name} is not built by TensorRT, so it takes no release of it: {target.summary}")
    releases = {path.stem.removeprefix(RELEASE): path for path in _bases(folder)}
    if tensorrt not in releases:
        there = ", ".join(sorted(releases, key=_natural))
        raise TargetError(f"no facts about TensorRT {tensorrt}: there are releases {there}")
    facts = {**target.facts, **_facts(releases[tensorrt])}
    return Target(name, f"{target.summary}, with TensorRT {tensorrt}", target.builder, facts, target.path)


def read(path: Path) -> Target:
    """One profile. Raises: TargetError naming the file, the key, what was found and what was expected."""
    content = _content(path)
    for key in ("name", "summary", "builder"):
        if key not in content:
            raise TargetError(f"{path}: the key {key!r} is missing")
        if expected := text(content[key]):
            raise TargetError(f"{path}: {key} is {content[key]!r}, expected {expected}")
    if content["name"] != path.stem:
        raise TargetError(f"{path}: name is {content['name']!r}, expected the file's own, {path.stem!r}")
    if content["builder"] not in BUILDERS:
        raise TargetError(f"{path}: builder is {content['builder']!r}, expected {' or '.join(BUILDERS)}")
    facts = _facts(path)
    for name in (*REQUIRED, *REQUIRED_BY_BUILDER[content["builder"]]):
        if name not in facts:
            raise TargetError(f'{path}: [facts.{name}] is missing; "{UNVERIFIED}" is a value it may have')
    if content["builder"] == "tensorrt-rtx" and not facts.keys() & {
        "compute_capability",
        "compute_capabilities",
    }:
        raise TargetError(
            f"{path}: [facts.compute_capability] is missing, or compute_capabilities for several"
        )
    return Target(content["name"], content["summary"], content["builder"], facts, path)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise TargetError(f"{path}: not a readable TOML file: {cause}") from cause
    if extra := content.keys() - set(KEYS):
        raise TargetError(f"{path}: unknown key {sorted(extra)[0]!r}; facts go into [facts.NAME] tables")
    if "facts" not in content and "extends" not in content:
        raise TargetError(f"{path}: the key 'facts' is missing")
    if not isinstance(content.get("facts", {}), dict):
        raise TargetError(f"{path}: facts is {content['facts']!r}, expected [facts.NAME] tables")
    return content


def _facts(path: Path, through: tuple[Path, ...] = ()) -> dict[str, Fact]:
    """The facts of a profile with those it extends; `through` are the profiles that led here."""
    content = _content(path)
    names = content.get("extends", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TargetError(f"{path}: extends is {names!r}, expected a list of profile names")
    facts: dict[str, Fact] = {}
    for name in names:
        base = _beside(path, name)
        if base in (*through, path):
            raise TargetError(f"{path}: extends {name!r}, which extends it in turn")
        facts |= _facts(base, (*through, path))
    return facts | {name: _fact(path, name, entry) for name, entry in content.get("facts", {}).items()}


def _beside(path: Path, name: str) -> Path:
    """The profile called `name`: in the folder of `path`, else ours."""
    places = dict.fromkeys([path.parent, *_folders()])
    for place in places:
        if (found := place / f"{name}.toml").is_file() and found != path:
            return found
    raise TargetError(
        f"{path}: extends {name!r}, but there is no {name}.toml beside it or among our profiles"
    )


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
    if expected := text(entry["source"]):
        raise TargetError(f"{where}.source is {entry['source']!r}, expected {expected}")
    if type(entry["date"]) is not date:
        raise TargetError(f"{where}.date is {entry['date']!r}, expected a date such as 2026-11-22, unquoted")
    return Fact(entry["value"], entry["source"], entry["date"], str(entry.get("note", "")))


def _natural(name: str) -> list[tuple[int, str]]:
    """Order rtx-sm80 before rtx-sm120."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _folders(folder: Path | None = None) -> list[Path]:
    folders = [Path(__file__).parent]
    named = {FOLDER_VARIABLE: os.environ.get(FOLDER_VARIABLE), "the folder of targets": folder}
    for source, place in named.items():
        if place:
            if not Path(place).is_dir():
                raise TargetError(f"{source} is {str(place)!r}, which is not a directory of .toml profiles")
            folders.append(Path(place))
    return folders


def _bases(folder: Path | None) -> list[Path]:
    return [
        path for place in _folders(folder) for path in place.glob(f"{RELEASE}*.toml") if _is_release(path)
    ]


def _is_release(path: Path) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)+", path.stem.removeprefix(RELEASE)))


def _plain(words: str) -> Any:
    from rich.text import Text

    return Text(words, style="dim")
