"""Reduction methods, one file each in the folder of its family: adding a file that defines a Method adds a method.

A family is a folder with a TITLE, and a PLACE in the order they are listed in.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Method

PARTS = "parts"
"""The folder that is no family."""


@cache
def _families() -> Mapping[str, ModuleType]:
    found = {
        info.name: importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if info.ispkg and info.name != PARTS
    }
    return MappingProxyType(dict(sorted(found.items(), key=lambda item: item[1].PLACE)))


def families() -> Mapping[str, str]:
    """Return the titles of the families by name, in the order they are listed in."""
    return {name: str(folder.TITLE) for name, folder in _families().items()}


@cache
def _registry() -> Mapping[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for folder in _families().values():
        for info in pkgutil.iter_modules(folder.__path__):
            module = importlib.import_module(f"{folder.__name__}.{info.name}")
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


def at_blocks() -> tuple[str, ...]:
    """Return the names of the methods that can be written behind a block of a model, sorted."""
    return tuple(
        name for name, method in _registry().items() if method.home == "block" and not method.pending
    )


def of_tokens() -> tuple[str, ...]:
    """Return the names of the methods that reduce tokens, sorted; the others choose entries of a cache."""
    return tuple(name for name, method in _registry().items() if method.home != "cache")


def get(name: str) -> type[Method]:
    """Return the method called `name`. Raises: MethodError with the closest names."""
    registry = {**_registry(), **_MORE.get()}
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"methods: {', '.join(registry)}"
    raise MethodError(f"no method is called {name!r}; {hint}")


def for_graph(name: str, options: Mapping[str, Any]) -> Method:
    """Return the method made of its options, to be written into a graph. Raises: MethodError."""
    kind = get(name)
    if kind.pending:
        raise MethodError(
            f"method {name!r} runs on arrays alone (tokenrt.apply_method) and cannot be written into a model: {kind.pending}"
        )
    return kind.from_options(options)
