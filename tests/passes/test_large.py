"""A model over 2 GB, whose weights must lie beside it, reduces and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import state
from tests.passes.helpers.running import run
from tokenrt.errors import ModelError
from tokenrt.passes.planning.plan import Budget

ROWS = 150_000_000
WORDS = 20


def embedded(table: np.ndarray) -> onnx.ModelProto:
    """The tiny model over words: six ids, looked up in `table`."""
    made = tiny.model()
    del made.graph.input[:]
    made.graph.input.append(onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["B", 6]))
    made.graph.node.insert(0, onnx.helper.make_node("Gather", ["table", "ids"], ["x"], name="lookup"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    return made


def large(folder: Path, table: np.ndarray) -> Path:
    """The same with a table of 2.4 GB, most of it a hole in a sparse file."""
    made = embedded(table)
    tensor = made.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.dims[0] = ROWS
    tensor.data_location = onnx.TensorProto.EXTERNAL
    length = ROWS * 4 * 4
    for key, value in (("location", "model.data"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    with (folder / "model.data").open("wb") as file:
        file.write(table.tobytes())
        file.truncate(length)
    onnx.save(made, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
def test_over_two_gigabytes(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((WORDS, 4), np.float32)
    path, target = large(tmp_path, table), tmp_path / "out.onnx"
    tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=target)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.data",
        "model.onnx",
        "out.onnx",
        "out.onnx.data",
    ]
    assert target.stat().st_size < 2**20
    onnx.checker.check_model(target)
    small = tmp_path / "small.onnx"
    onnx.save(embedded(table), small)
    expected = tokenrt.reduce(small, method="tome", budget=Budget.remove(1)).model
    given = {"ids": np.random.default_rng(1).integers(0, WORDS, (3, 6))}
    np.testing.assert_array_equal(run(target, given)[0], run(expected, given)[0])


@pytest.mark.slow
def test_weights_cut_short_are_found_without_reading_them(tmp_path: Path) -> None:
    path = large(tmp_path, np.zeros((WORDS, 4), np.float32))
    with (tmp_path / "model.data").open("r+b") as file:
        file.truncate(ROWS * 4 * 4 - 1)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    with pytest.raises(ModelError, match=r"model\.data is truncated: table needs 2400000000 bytes"):
        tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=tmp_path / "out.onnx")
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == sizes


def test_external_weights_of_a_small_model_move_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    before = state(tmp_path)
    target = tmp_path / "out.onnx"
    tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=target)
    assert {name: digest for name, digest in state(tmp_path).items() if name != "out.onnx"} == before
    (tmp_path / "model.data").unlink()
    given = tiny.picture()
    expected = tokenrt.reduce(_written(tmp_path), method="tome", budget=Budget.remove(1)).model
    np.testing.assert_array_equal(run(target, given)[0], run(expected, given)[0])


def _written(folder: Path) -> Path:
    path = folder / "whole.onnx"
    onnx.save(tiny.model(), path)
    return path
