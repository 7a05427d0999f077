"""Reduction methods, one file each: adding a file that defines a Method adds a method."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Method


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
