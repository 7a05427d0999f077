"""A model that no method can reduce is refused with the reasons; a method that it does not take is left out with its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from typer.testing import CliRunner

from tokenrt.cli import app
from tokenrt.errors import NothingToDoError
from tokenrt.passes.planning.request import Request
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.tune.refusals import refused

PLAIN = """
<ir_version: 8, opset_import: ["" : 17]>
plain (float[B,6,4] x) => (float[B,6,4] y) <float[4,4] w = {
  1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1 }> {
  mixed = MatMul (x, w)
  y = Relu (mixed)
}
"""


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Reducer:
    path = tmp_path_factory.mktemp("refusals") / "vit.onnx"
    return Reducer.of(PlainViT(width=64, heads=2, blocks=2, patch=16, image=64, classes=4).write(path))


def test_a_model_without_a_transformer_is_refused(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(PLAIN), tmp_path / "plain.onnx")
    np.savez(tmp_path / "d.npz", allow_pickle=False, x=np.ones((2, 6, 4), np.float32))
    words = [
        tmp_path / "plain.onnx",
        "--data",
        tmp_path / "d.npz",
        "--flops",
        0.7,
        "-o",
        tmp_path / "run",
        "--json",
    ]
    done = CliRunner().invoke(app, ["tune", *map(str, words)])
    assert done.exit_code == 2
    told = json.loads(done.stdout)["error"]
    assert told["type"] == "NothingToDoError"
    assert told["message"].startswith("no transformer block can be reduced")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_method_that_a_model_does_not_take_says_why(vit: Reducer) -> None:
    found = refused(vit, ["topk", "fastv", "tome"], Request())
    assert [*found] == ["fastv"]
    assert "under a causal mask, and this model has none" in found["fastv"]


def test_where_no_method_is_taken_all_reasons_are_told(vit: Reducer) -> None:
    with pytest.raises(NothingToDoError, match="fastv works inside"):
        refused(vit, ["fastv"], Request())
    with pytest.raises(NothingToDoError, match=r"(?s)no method that competes.*\n  fastv: .*\n  sparsevlm: "):
        refused(vit, ["fastv", "sparsevlm"], Request())


def test_a_place_that_is_not_there_is_the_reason(vit: Reducer) -> None:
    with pytest.raises(NothingToDoError, match="around-attention"):
        refused(vit, ["topk", "tome"], Request(site="around-attention"))
