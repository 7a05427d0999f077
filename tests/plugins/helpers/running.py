"""What the tests of the kernels share: running one, types, sizes at the boundaries, random tensors."""

from __future__ import annotations

import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins.host import kernels
from tokenrt.plugins.toolchain.compiler import COMPILERS

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS), reason="no C++ compiler on PATH"
)

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SIZES = (1, 2, 31, 32, 33, 196, 197, 257, 577, 1025)


def run(name: str, inputs: list[Any], attributes: Any) -> list[Any]:
    """Run the operator's kernel."""
    return list(kernels.run(name, inputs, OPERATORS[name].settle(attributes)))


def wide(inputs: list[Any]) -> list[Any]:
    """The inputs in float64, indices as they are."""
    return [
        item.astype(np.float64) if item.dtype.kind not in "iu" else item for item in map(np.asarray, inputs)
    ]


def random(shape: tuple[int, ...], kind: str = "float32", seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(KINDS[kind])
