"""Files of every IR version; weights that are inputs as well; and what onnx.version_converter makes of old operator sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run, session
from tokenrt.errors import ModelError
from tokenrt.passes.planning.plan import Budget

CONSTANT = "  none = Constant <value = int64 {0}> ()\n  first = Gather <axis = 1> (b1_out, none)\n  y = MatMul (first, w1)\n"
"""A Constant node, which no weight of the file is."""


def old(version: int, opset: int = 13, *, listed: bool = True, softmax: int | None = None) -> onnx.ModelProto:
    """The tiny model in another IR version, its nodes without names; listed: every weight is an input as well."""
    made = tiny.model(CONSTANT, opset=opset)
    made.ir_version = version
    for node in made.graph.node:
        node.name = ""
        if node.op_type == "Softmax" and softmax is not None:
            node.attribute[0].i = softmax
    if listed:
        made.graph.input.extend(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in made.graph.initializer
        )
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize("version", range(3, 14))
def test_every_ir_version(version: int, tmp_path: Path) -> None:
    given = old(version)
    path = tmp_path / "m.onnx"
    path.write_bytes(given.SerializeToString())
    # ONNX Runtime may be older than the newest IR version; what the model says does not depend on it.
    wanted = run(tiny.model(CONSTANT), tiny.picture())
    target = tmp_path / "r.onnx"
    tokenrt.reduce(path, method="tome", budget=Budget.remove(0), allow_noop=True, output=target)
    made = onnx.load(target)
    assert made.ir_version == max(version, 8)
    assert [value.name for value in made.graph.input] == ["x"]
    onnx.checker.check_model(made)
    close(run(made, tiny.picture()), wanted)
    tokenrt.reduce(path, method="slice", budget=Budget.remove(1), output=target)
    onnx.checker.check_model(onnx.load(target))
    assert run(target, tiny.picture())[0].shape == (2, 8)
    assert [text.split()[0] for text in tokenrt.inspect(path).inputs] == ["x"]


def test_the_other_verbs_take_such_a_file(tmp_path: Path) -> None:
    path, target = tmp_path / "m.onnx", tmp_path / "r.onnx"
    path.write_bytes(old(3).SerializeToString())
    tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=target)
    assert tokenrt.check(path, target).ok
    half = tokenrt.convert(path, precision="fp16", rules="standard").model
    assert [value.name for value in session(half).get_inputs()] == ["x"]
    assert tokenrt.lower(path, inline=True).model.ir_version >= 4


def test_a_default_that_could_be_replaced_is_a_constant_and_no_input() -> None:
    """Another value for it would be refused by the runtime, not left aside."""
    made = tokenrt.reduce(ir.from_proto(old(9)), method="tome", budget=Budget.remove(1)).model
    with pytest.raises(Exception, match="w2"):
        session(made).run(None, {**tiny.picture(), "w2": np.zeros((8, 4), np.float32)})


@pytest.mark.parametrize(("opset", "axis"), [(9, 3), (11, 3), (11, -1), (12, 3)])
@pytest.mark.parametrize("version", [3, 7])
def test_the_remedy_for_old_operator_sets_leads_to_a_file_that_works(
    version: int, opset: int, axis: int, tmp_path: Path
) -> None:
    path = tmp_path / "old.onnx"
    given = old(version, opset, softmax=axis)
    path.write_bytes(given.SerializeToString())
    with pytest.raises(ModelError, match=r"onnx\.version_converter"):
        tokenrt.inspect(path)
    converted = tmp_path / "new.onnx"
    onnx.save(onnx.version_converter.convert_version(given, 17), converted)
    wanted = run(given, tiny.picture())
    assert len(tokenrt.inspect(converted).blocks) == 2
    same = tokenrt.reduce(converted, method="tome", budget=Budget.remove(0), allow_noop=True).model
    close(run(same, tiny.picture()), wanted)
    made = tokenrt.reduce(converted, method="tome", budget=Budget.remove(1)).model
    assert not np.allclose(run(made, tiny.picture())[0], wanted[0])


def test_a_softmax_over_more_than_rows_stays_flattened() -> None:
    """Over the heads and keys at once it is another function, and no attention."""
    given = onnx.version_converter.convert_version(old(7, 11, softmax=2), 17)
    assert not tokenrt.inspect(ir.from_proto(given)).blocks
