"""One file a family of methods; each has CHECKS, from the recorded method's name to its comparison."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from tests.golden.compare import Check


def checks() -> Mapping[str, Check]:
    """Return every comparison by the recorded method's name."""
    found: dict[str, Check] = {}
    for info in pkgutil.iter_modules(__path__):
        found.update(importlib.import_module(f"{__name__}.{info.name}").CHECKS)
    return found
