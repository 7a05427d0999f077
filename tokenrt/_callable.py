"""Packages that can be called, so that `tokenrt.export(...)` works while `tokenrt.export` is a package.

Importing a subpackage binds it as an attribute of `tokenrt`, over any function of the same name. Where a
verb and a folder share a name the package itself is therefore made to answer calls.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A package whose call is the call of the function named by its `__entry__`."""

    __entry__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__entry__)(*args, **kwargs)


def make_callable(package: str, entry: str) -> None:
    """Let calling the imported `package` call its attribute `entry`; for the last line of an `__init__`."""
    module = sys.modules[package]
    module.__class__ = CallableModule
    module.__dict__["__entry__"] = entry
