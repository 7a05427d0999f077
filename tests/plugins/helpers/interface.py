"""What the tests of the plugins' interface share: the shared case of an operator as a node of a model, and its types."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.passes.ops.helpers.cases import cases
from tests.plugins.helpers.node import TYPES, Node, told
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins import contracts
from tokenrt.plugins.toolchain.compiler import COMPILERS

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS), reason="no C++ compiler on PATH"
)

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
NUMBERS = {"float32": 1, "float16": 10, "bfloat16": 16}
UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
HELD = (contracts.OWN, contracts.FREE)
CONTRACTS = contracts.contracts()


def inputs_of(name: str, kind: str = "float32") -> tuple[list[Any], dict[str, Any]]:
    """The shared case of an operator, in one of the types, with settled attributes."""
    inputs, attributes = cases()[name]
    contract = CONTRACTS[name]
    own = [
        np.asarray(item).astype(KINDS[kind]) if tensor.type in HELD else np.asarray(item)
        for item, tensor in zip(inputs, contract.inputs, strict=True)
    ]
    settled = OPERATORS[name].settle(attributes)
    return own, settled | ({"type": NUMBERS[kind]} if "type" in settled else {})


def made(path: Path, name: str, kind: str = "float32") -> Node:
    node = Node.create(path, name, inputs_of(name, kind)[1])
    assert node is not None, told()
    return node


def types_of(name: str, kind: str) -> tuple[list[int], list[int]]:
    """Types of inputs and outputs."""
    contract = CONTRACTS[name]
    return (
        [TYPES[kind if tensor.type in HELD else tensor.type] for tensor in contract.inputs],
        [TYPES[kind if tensor.type in HELD else tensor.type] for tensor in contract.outputs],
    )
