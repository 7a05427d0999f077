"""Inputs and outputs keep their names, order, types and meaning, whatever stands behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run, session
from tokenrt.passes.planning.plan import Budget

Y = "float[B,8] y"
STREAM = "float[B,6,4] {0}"

KINDS = {
    "two-names": (tiny.CLASS + "  again = Identity (y)\n", f"{Y}, float[B,8] again"),
    "three-names": (
        tiny.CLASS + "  second = Identity (y)\n  third = Identity (second)\n",
        "float[B,8] third, float[B,8] second, float[B,8] y",
    ),
    "siblings": (
        "  first = Gather <axis = 1> (b1_out, zero)\n  hidden = MatMul (first, w1)\n"
        "  y = Identity (hidden)\n  second = Identity (hidden)\n",
        f"float[B,8] second, {Y}",
    ),
    "input": (tiny.CLASS + "  again = Identity (x)\n", f"{Y}, {STREAM.format('again')}"),
    "initializer": (tiny.CLASS + "  again = Identity (places)\n", f"float[1,6,4] again, {Y}"),
    "constant": (
        tiny.CLASS + "  again = Constant <value = float[2] {1.0, 2.0}> ()\n",
        f"float[2] again, {Y}",
    ),
    "folded": (tiny.CLASS + "  again = Shape <start = 1> (x)\n", f"int64[2] again, {Y}"),
    "stream": (
        tiny.CLASS + "  again = Identity (b1_out)\n  more = Identity (again)\n",
        f"{Y}, {STREAM.format('again')}, {STREAM.format('b1_out')}, {STREAM.format('more')}",
    ),
    "inner-stream": (
        tiny.CLASS + "  again = Identity (b0_out)\n",
        f"{STREAM.format('again')}, {Y}, {STREAM.format('b0_out')}",
    ),
    "attended-stream": (
        tiny.CLASS + "  again = Identity (b0_attended)\n",
        f"{Y}, {STREAM.format('b0_attended')}, {STREAM.format('again')}",
    ),
    "twin-subexpression": (
        tiny.CLASS + "  other = Gather <axis = 1> (b1_out, zero)\n  again = MatMul (other, w1)\n",
        f"{Y}, float[B,8] again",
    ),
}


def names(model: ir.Model | onnx.ModelProto) -> list[str]:
    return [output.name for output in session(model).get_outputs()]


@pytest.mark.parametrize("method", ["slice", "tome"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_output_is_there_and_names_of_one_tensor_agree(kind: str, method: str) -> None:
    head, output = KINDS[kind]
    given = tiny.model(head, output=output)
    wanted = run(given, tiny.picture())
    same = tokenrt.reduce(ir.from_proto(given), method=method, budget=Budget.remove(0), allow_noop=True).model
    assert names(same) == names(given)
    close(run(same, tiny.picture()), wanted)
    made = tokenrt.reduce(ir.from_proto(given), method=method, budget=Budget.remove(1)).model
    assert names(made) == names(given)
    found = run(made, tiny.picture())
    for i, left in enumerate(wanted):
        for j, right in enumerate(wanted):
            if left.shape == right.shape and np.array_equal(left, right):
                assert np.array_equal(found[i], found[j])
    for value, now in zip(wanted, found, strict=True):
        assert now.shape == value.shape
        assert now.dtype == value.dtype


@pytest.mark.parametrize("kind", ["three-names", "inner-stream", "initializer"])
def test_lower_convert_and_inspect_keep_them_too(kind: str, tmp_path: Path) -> None:
    head, output = KINDS[kind]
    given = tiny.model(head, output=output)
    made = tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(1)).model
    lowered = tokenrt.lower(made, inline=True).model
    assert names(lowered) == names(given)
    close(run(lowered, tiny.picture()), run(made, tiny.picture()))
    half = tokenrt.convert(made, precision="fp16", rules="standard").model
    assert names(half) == names(given)
    listed = [text.split()[0] for text in tokenrt.inspect(ir.from_proto(given)).outputs]
    assert listed == names(given)
    assert tokenrt.check(ir.from_proto(given), made).ok


def test_an_input_nobody_reads_stays() -> None:
    given = tiny.model(inputs="int64[B,6] ids, float[B,6,4] x, float[B] unused")
    made = tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(1)).model
    assert [value.name for value in session(made).get_inputs()] == ["ids", "x", "unused"]
    listed = [text.split()[0] for text in tokenrt.inspect(ir.from_proto(given)).inputs]
    assert listed == ["ids", "x", "unused"]
