"""Reduction methods, one file each: adding a file that defines a Method adds a method."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
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


_MORE: ContextVar[Mapping[str, type[Method]]] = ContextVar("more methods", default=MappingProxyType({}))


@contextmanager
def also(*more: type[Method]) -> Iterator[None]:
    """Let `get` know these methods too inside the block: methods that are no file of their own, as an experiment's."""
    token = _MORE.set(MappingProxyType({**_MORE.get(), **{method.name: method for method in more}}))
    try:
        yield
    finally:
        _MORE.reset(token)


def names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(_registry())


def get(name: str) -> type[Method]:
    """Return the method called `name`. Raises: MethodError with the closest names."""
    registry = {**_registry(), **_MORE.get()}
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"methods: {', '.join(registry)}"
    raise MethodError(f"no method is called {name!r}; {hint}")
