"""DivPrune, of its authors and as AngelSlim has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method


def check_divprune(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """What is kept, and where it was recorded the order of choosing."""
    options: dict[str, Any] = {"keep": params["K"], "protect": 0, "backend": backend}
    given = {"x": arrays["x"]}
    equal("kept", apply_method("divprune", given, **options)["index"], arrays["keep_idx"])
    if "select_order" in arrays:
        found = apply_method("divprune", given, order="score", **options)["index"]
        equal("order of choosing", found, arrays["select_order"])


CHECKS: Mapping[str, Check] = {"divprune": check_divprune, "angelslim_divprune": check_divprune}
