"""Whether ONNX Runtime computes from the exported file what torch computes from the module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import ExportError
from tokenrt.export.report import ParityRow
from tokenrt.export.sources.contract import first_line
from tokenrt.passes.checking.runtime import session_options

# dtype -> (largest difference for outputs up to 1, least cosine). fp32 exports of 4 to 12 blocks measured
# below 1e-5, fp16 ones of 4 blocks below 1e-2.
LIMITS = {"fp32": (1e-4, 0.99999), "fp16": (3e-2, 0.999)}

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def compare(path: Path, cases: Sequence[tuple[int, Arrays, Arrays]], dtype: str) -> tuple[ParityRow, ...]:
    """Run the file on each (batch, inputs, expected outputs) and measure every output.

    Raises: ExportError when the file does not load or run, an output has another shape, or a row fails.
    """
    session = _session(path)
    limit, least = LIMITS[dtype]
    rows = []
    for batch, inputs, expected in cases:
        for name, got in _run(session, inputs, list(expected), batch).items():
            want = expected[name]
            if got.shape != want.shape:
                raise ExportError(
                    f"at batch {batch} the exported model's output {name} is {list(got.shape)}, in torch it "
                    f"is {list(want.shape)}: a size was fixed during export; nothing was written"
                )
            difference, scale, cosine = _measure(got, want)
            rows.append(ParityRow(name, batch, difference, limit * max(1.0, scale), cosine, least))
    failed = [row for row in rows if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: math.inf if math.isnan(row.difference) else row.difference)
        raise ExportError(
            f"the exported model differs from torch in {len(failed)} of {len(rows)} comparisons; worst: "
            f"output {worst.output} at batch {worst.batch}, max abs difference {worst.difference:.3g} "
            f"(allowed {worst.tolerance:.3g}), cosine {worst.cosine:.6f} (at least {worst.least_cosine}); "
            "nothing was written. Try the other exporter or opset; a module that draws random numbers can "
            "never agree"
        )
    return tuple(rows)


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = session_options(path, severity=4)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        raise ExportError(
            f"ONNX Runtime does not load the exported model: {first_line(cause)}; nothing was written. Try the "
            "other exporter, another opset or fp32"
        ) from cause


def _run(session: Any, inputs: Arrays, names: list[str], batch: int) -> dict[str, Array]:
    # The exporter drops inputs that no output depends on.
    takes = {value.name for value in session.get_inputs()}
    try:
        found = session.run(names, {name: array for name, array in inputs.items() if name in takes})
    except Exception as cause:
        raise ExportError(
            f"ONNX Runtime fails on the exported model at batch {batch}: {first_line(cause)}"
        ) from cause
    return dict(zip(names, found, strict=True))


def _measure(got: Array, want: Array) -> tuple[float, float, float]:
    """Largest absolute difference, largest magnitude wanted, cosine; infinities must be the same in both."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite]):
        return math.nan, 0.0, math.nan
    a, b = a[finite], b[finite]
    difference, scale = np.abs(a - b).max(initial=0.0), np.abs(b).max(initial=0.0)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(np.dot(a, b)) / lengths if lengths else float(np.array_equal(a, b))
    return float(difference), float(scale), cosine
