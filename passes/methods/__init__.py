"""Reduction methods, one file each: adding a file that defines a Method adds a method."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Method

if TYPE_CHECKING:
    from rich.console import RenderableType


@cache
def _registry() -> Mapping[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_") or info.name == "contract":
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        for _, item in inspect.getmembers(module, inspect.isclass):
            if issubclass(item, Method) and item.__module__ == module.__name__:
                found[item.name] = item
    return MappingProxyType(dict(sorted(found.items())))


def names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(_registry())


def get(name: str) -> type[Method]:
    """Return the method called `name`. Raises: MethodError with the closest names."""
    registry = _registry()
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"methods: {', '.join(registry)}"
    raise MethodError(f"no method is called {name!r}; {hint}")


@dataclass(frozen=True)
class MethodInfo:
    """What the catalogue says about one method."""

    name: str
    family: str
    summary: str
    paper: str
    reads: tuple[str, ...]
    merges: bool
    drops: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class MethodCatalog:
    """All methods with their options and defaults."""

    methods: tuple[MethodInfo, ...]

    def as_dict(self) -> dict[str, Any]:
        rows = [{field.name: getattr(info, field.name) for field in fields(info)} for info in self.methods]
        return {
            "methods": [{**row, "reads": list(row["reads"]), "options": dict(row["options"])} for row in rows]
        }

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        table = Table(title="Reduction methods")
        for column in ("name", "family", "what it does", "options", "paper"):
            table.add_column(column, overflow="fold")
        for info in self.methods:
            options = "\n".join(f"{key}={value}" for key, value in info.options.items())
            table.add_row(info.name, info.family, info.summary, options, info.paper)
        return table


def catalog() -> MethodCatalog:
    """Return every method with its options and defaults."""
    return MethodCatalog(tuple(_info(method) for method in _registry().values()))


def _info(method: type[Method]) -> MethodInfo:
    return MethodInfo(
        method.name,
        method.family,
        method.summary,
        method.paper,
        method.reads,
        method.merges,
        method.drops,
        {field.name: field.default for field in fields(method)},
    )
