"""The operators as Polygraphy runs them: NumPy references for `polygraphy run --pluginref` and PluginRefRunner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.ops.contract import Array, Operator

NAMING = frozenset({"plugin_version", "plugin_namespace"})
"""Attributes of a bare node that name its plugin and are none of the operator's own."""


def register() -> tuple[str, ...]:
    """Make every tokenrt operator known to Polygraphy's reference runner; returns their names."""
    from polygraphy.backend.pluginref.references import register as polygraphy_register

    for operator in OPERATORS.values():
        polygraphy_register(operator.name)(_reference(operator))
    return tuple(OPERATORS)


def _reference(operator: Operator) -> Callable[..., list[Array]]:
    def run(attributes: Mapping[str, Any], *inputs: Any) -> list[Array]:
        arrays = [np.asarray(item) for item in inputs]
        own = {name: value for name, value in attributes.items() if name not in NAMING}
        found = operator.reference(*arrays, **operator.settle(own))
        outputs = found if isinstance(found, tuple) else (found,)
        given = dict(zip(operator.inputs, arrays, strict=True))
        return [
            np.asarray(output).astype(given[kind].dtype if kind in given else kind)
            for output, kind in zip(outputs, operator.types, strict=True)
        ]

    return run
