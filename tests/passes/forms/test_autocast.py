"""AutoCast judges which values leave the range of half; the casting stays ours, and works without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.forms.test_convert import parse, reduced, types
from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.forms import autocast

LARGE = """<ir_version: 8, opset_import: ["": 18]>
main (float[B,4,4] x) => (float[B,4,4] y) <float gain = {GAIN}> {
  s = MatMul (x, x)
  t = Mul (s, gain)
  r = Relu (t)
  y = MatMul (s, x)
  z = Neg (y)
}
"""
whole = pytest.mark.skipif(not autocast.installed(), reason=f"AutoCast is not here ({autocast.REMEDY})")


def large(gain: float) -> ir.Model:
    return parse(LARGE.replace("GAIN", str(gain)))


@whole
def test_what_leaves_the_range_stays_in_float32() -> None:
    made = tokenrt.convert(large(30000.0), precision="fp16", rules="autocast")
    assert made.ranged == ("r", "t")
    assert made.rules.startswith("standard lists and AutoCast of modelopt ")
    kinds = types(made.model)
    assert (kinds["Mul"], kinds["Relu"]) == ("FLOAT", "FLOAT")
    assert (kinds["MatMul"], kinds["Neg"]) == ("FLOAT16", "FLOAT16")
    assert made.as_dict()["kept_for_their_range"] == ["r", "t"]
    assert tokenrt.convert(large(1.0), precision="fp16", rules="autocast").ranged == ()


@whole
def test_it_judges_on_the_data_that_is_given() -> None:
    small, wide = np.full((2, 4, 4), 0.1, np.float32), np.full((2, 4, 4), 5.0, np.float32)
    asked: dict[str, Any] = {"precision": "fp16", "rules": "autocast", "check": False}
    assert tokenrt.convert(large(10.0), data={"x": small}, **asked).ranged == ()
    assert {"r", "t"} <= {*tokenrt.convert(large(10.0), data={"x": wide}, **asked).ranged}


@whole
def test_the_reduction_keeps_its_functions_and_its_float32() -> None:
    model = reduced("tome")
    judged = tokenrt.convert(model, precision="fp16", keep_io=True)
    plain = tokenrt.convert(model, precision="fp16", keep_io=True, rules="standard")
    assert "AutoCast" in judged.rules
    assert judged.model.functions.keys() == model.functions.keys()
    assert judged.casts >= plain.casts > 0
    assert judged.drift is not None
    assert judged.drift.ok


def test_without_it_the_lists_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocast, "installed", lambda: False)
    assert tokenrt.convert(large(1.0), precision="fp16").rules == "standard lists"
    with pytest.raises(TokenrtError, match=r"nvidia-modelopt, which is not installed: pip install --no-deps"):
        tokenrt.convert(large(1.0), precision="fp16", rules="autocast")
    with pytest.raises(TokenrtError, match="rules are 'mine'; there are auto, standard, autocast"):
        tokenrt.convert(large(1.0), precision="fp16", rules="mine")


def test_where_it_fails_the_lists_decide_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*_: Any) -> autocast.Judgement:
        raise NameError("name 'trt' is not defined")

    monkeypatch.setattr(autocast, "installed", lambda: True)
    monkeypatch.setattr(autocast, "judge", judge)
    made = tokenrt.convert(large(1.0), precision="fp16")
    assert made.rules == "standard lists alone: AutoCast cannot judge the model (name 'trt' is not defined)"
    with pytest.raises(
        UnsupportedError, match=r"cannot judge the model: .* --rules standard does without it"
    ):
        tokenrt.convert(large(1.0), precision="fp16", rules="autocast")
