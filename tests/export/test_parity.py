"""The comparison of torch and ONNX Runtime: what passes, what fails, and what the error says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tokenrt.errors import ExportError
from tokenrt.export.parity import compare
from tokenrt.export.report import ParityRow


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A model y = x + x with a free batch and an input that nothing reads."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[B, 3] x) => (float[B, 3] y) { y = Add(x, x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def case(batch: int, error: float = 0.0) -> tuple[int, dict[str, Any], dict[str, Any]]:
    x = np.arange(1.0, 1.0 + 3 * batch, dtype=np.float32).reshape(batch, 3)
    return batch, {"x": x, "unread": x}, {"y": 2 * x + np.float32(error)}


def test_equal_outputs_pass(doubling: Path) -> None:
    rows = compare(doubling, [case(1), case(2)], "fp32")
    assert [(row.output, row.batch, row.difference, row.cosine) for row in rows] == [
        ("y", 1, 0.0, pytest.approx(1.0)),
        ("y", 2, 0.0, pytest.approx(1.0)),
    ]


def test_tolerance_grows_with_the_output(doubling: Path) -> None:
    (row,) = compare(doubling, [case(2, error=1e-4)], "fp32")
    assert row.tolerance == pytest.approx(1e-4 * 12.0001)
    assert row.difference == pytest.approx(1e-4, rel=0.05)


def test_difference_fails_in_fp32_and_passes_in_fp16(doubling: Path) -> None:
    with pytest.raises(
        ExportError, match=r"differs from torch in 1 of 2 comparisons; worst: output y at batch 2"
    ):
        compare(doubling, [case(1), case(2, error=0.1)], "fp32")
    assert compare(doubling, [case(2, error=0.1)], "fp16")[0].passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_finite_on_one_side_only_fail(doubling: Path, value: float) -> None:
    batch, inputs, expected = case(1)
    expected["y"][0, 0] = value
    with pytest.raises(ExportError, match="differs from torch in 1 of 1"):
        compare(doubling, [(batch, inputs, expected)], "fp32")


def test_infinities_on_both_sides_are_equal(doubling: Path) -> None:
    batch, inputs, expected = case(2)
    inputs["x"][0, 1] = expected["y"][0, 1] = -math.inf
    (row,) = compare(doubling, [(batch, inputs, expected)], "fp32")
    assert row.difference == 0.0
    assert row.cosine == pytest.approx(1.0)


def test_a_nan_is_the_worst(doubling: Path) -> None:
    batch, inputs, expected = case(1)
    expected["y"][0, 0] = math.nan
    with pytest.raises(ExportError, match="output y at batch 1, max abs difference nan"):
        compare(doubling, [case(2, error=5.0), (batch, inputs, expected)], "fp32")


def test_another_shape_is_said_to_be_one(doubling: Path) -> None:
    batch, inputs, _ = case(1)
    with pytest.raises(ExportError, match=r"output y is \[1, 3\], in torch it is \[2, 3\]: a size was fixed"):
        compare(doubling, [(batch, inputs, {"y": np.zeros((2, 3))})], "fp32")


def test_a_file_that_does_not_load_or_run(doubling: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="ONNX Runtime does not load the exported model"):
        compare(tmp_path / "broken.onnx", [case(1)], "fp32")
    with pytest.raises(ExportError, match="ONNX Runtime fails on the exported model at batch 1"):
        compare(doubling, [(1, {}, case(1)[2])], "fp32")


@pytest.mark.parametrize(
    ("difference", "cosine", "passed"),
    [
        (0.1, 0.99, True),
        (0.2, 0.99, False),
        (0.1, 0.98, False),
        (math.nan, 0.99, False),
        (0.1, math.nan, False),
    ],
)
def test_verdict(difference: float, cosine: float, passed: bool) -> None:
    assert ParityRow("y", 1, difference, 0.1, cosine, 0.99).passed is passed
