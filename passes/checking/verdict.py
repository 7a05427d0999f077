"""A property of a model that a run can refute: what was asked, what was measured, and what that says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.checking.check_data import Array
from tokenrt.passes.graph.model import load

HELD, FAILED, SILENT = "held", "failed", "does not apply"

SUMS, OPERATORS = 2.0**5, 2.0**5
"""Growth of a rounding error, as its square root: sums of a thousand terms in another order, a thousand operators in a row."""

ROUNDING = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
"""Distance from 1 to the next number of the half types."""

QUANTIZED, STEP = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"}), 2.0**-8
"""What rounds to eight bits, and the half step by which a value on the border of two of them moves."""

INTEGERS = 2.0**-7
"""Share of a picture's integers (as the class of each pixel) that may change: those whose two best scores tie."""


@dataclass(frozen=True)
class Property:
    """One line of the check.

    number: the largest difference found, relative to the largest entry of its output (of integers: the share that
    differs), which fails above `threshold`; None where nothing was measured. why: what was compared, or why nothing was.
    """

    name: str
    state: str
    number: float | None
    threshold: float | None
    why: str

    @property
    def ok(self) -> bool:
        return self.state != FAILED

    def __str__(self) -> str:
        """The line; why it failed stands among the reasons."""
        numbers = "" if self.number is None else f" ({self.number:.1e}"
        if numbers:
            numbers += ")" if self.threshold is None else f" of at most {self.threshold:.1e})"
        return f"{self.name}: {self.state}{numbers}" + ("" if self.state == FAILED else f"; {self.why}")

    def as_dict(self) -> dict[str, Any]:
        known = self.number is not None and np.isfinite(self.number)
        return {**vars(self), "number": self.number if known else None}


def silent(name: str, why: str) -> Property:
    return Property(name, SILENT, None, None, why)


def tolerance(path: Path) -> float:
    """What rounding alone may change in the outputs of the model of a file, relative to their largest entry.

    Half and quantized operators add up in wider types, so that only their results are rounded.
    """
    graph = load(path).graph
    values = (*graph.initializers.values(), *graph.inputs, *graph.outputs)
    half = max((ROUNDING.get(value.dtype, 0.0) for value in values if value.dtype is not None), default=0.0)
    steps = [STEP for node in graph.all_nodes() if node.op_type in QUANTIZED][:1]
    return max(SUMS * OPERATORS * 2.0**-23, *(OPERATORS * size for size in (half, *steps)))


def allowed(output: Array, wide: float) -> float:
    """The threshold for one output, of which `wide` is that of floats."""
    return wide if output.dtype.kind == "f" else INTEGERS


def scale(output: Array) -> float:
    """The largest finite entry of a float output; 1 where there is none."""
    if output.dtype.kind != "f":
        return 1.0
    finite = np.abs(output[np.isfinite(output)].astype(np.float64))
    return float(finite.max(initial=0.0)) or 1.0


def apart(one: Array, other: Array, largest: float) -> float:
    """Distance of two arrays of one shape relative to `largest`; of integers, the share of entries that differ."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return float(np.mean(one != other)) if one.size else 0.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)) / largest
