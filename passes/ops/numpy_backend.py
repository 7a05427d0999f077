"""The `Ops` protocol on NumPy arrays: operators run at once, in float64. The reference of every method."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.ops.contract import Array
from tokenrt.passes.ops.standard import STANDARD


class NumpyOps:
    """Runs operators on arrays: floats become float64, integers stay what they are.

    Division by zero and infinities follow IEEE arithmetic silently, as they do on every runtime.
    """

    def __call__(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Run operator `name`; returns one array, or a tuple where the operator has several outputs."""
        arrays = [_wide(value) for value in inputs]
        with np.errstate(all="ignore"):
            if name in OPERATORS:
                operator = OPERATORS[name]
                if "type" in operator.attributes:
                    attributes = {"type": 1, **attributes}
                return operator.reference(*arrays, **operator.settle(attributes))
            return STANDARD[name](*arrays, **attributes)

    def constant(self, array: Any) -> Array:
        """Return a constant as the array it is."""
        return _wide(array)


def _wide(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
