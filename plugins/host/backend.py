"""The `Ops` protocol with the kernels: tokenrt operators run on the CPU by their CUDA source, standard ones in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.ops.contract import Array
from tokenrt.passes.ops.standard import STANDARD
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import TYPES


class HostOps:
    """Runs operators on arrays as a GPU would type them: half precision stays, everything wider is float32.

    Division by zero and infinities follow IEEE arithmetic silently, as they do on every runtime.

    Raises: UnsupportedError for an operator without a kernel, and where there is no C++ compiler.
    """

    def __call__(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Run operator `name`; returns one array, or a tuple where the operator has several outputs."""
        arrays = [self.constant(value) for value in inputs]
        with np.errstate(all="ignore"):
            if name not in OPERATORS:
                result = STANDARD[name](*arrays, **attributes)
                return tuple(map(_single, result)) if isinstance(result, tuple) else _single(result)
            operator = OPERATORS[name]
            if "type" in operator.attributes:
                tokens = arrays[operator.inputs.index("tokens")]
                attributes = {"type": TYPES[tokens.dtype.name], **attributes}
            outputs = kernels.run(name, arrays, operator.settle(attributes))
            return outputs if len(outputs) > 1 else outputs[0]

    def constant(self, array: Any) -> Array:
        """Return a constant as the array it is."""
        return _single(np.asarray(array))


def _single(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float64 else array
