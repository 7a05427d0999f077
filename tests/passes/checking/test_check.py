"""Comparing a reduced model with its original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from rich.console import Console

import tokenrt
from tokenrt.errors import DependencyError, ModelError, ShapeError, TokenrtError
from tokenrt.passes.checking.check import check
from tokenrt.passes.checking.check_data import feeds, inputs_of
from tokenrt.passes.checking.drift import compare

HEAD = '<ir_version: 10, opset_import: ["": 18]>\n'

CLASSIFIER = """<ir_version: 10, opset_import: ["": 18]>
main (float[B,3,4,6] x) => (float[B,3] logits, float[B,3,24] map) {
  shape = Constant <value_ints = [0, 3, 24]> ()
  map = Reshape (x, shape)
  last = Constant <value_ints = [-1]> ()
  SCALE = Constant <value_float = GAIN> ()
  mean = ReduceMean <keepdims = 0> (map, last)
  logits = Mul (mean, SCALE)
}
"""

FUNCTION = """<ir_version: 10, opset_import: ["": 18, "tokenrt": 1]>
main (float[B,3,4,6] x) => (float[B,3] logits, float[B,3,24] map) {
  shape = Constant <value_ints = [0, 3, 24]> ()
  map = Reshape (x, shape)
  logits = tokenrt.Mean (map)
}
<domain: "tokenrt", opset_import: ["": 18]>
Mean (a) => (b) {
  last = Constant <value_ints = [-1]> ()
  b = ReduceMean <keepdims = 0> (a, last)
}
"""

TEXT = """<ir_version: 10, opset_import: ["": 18]>
main (int64[B,5] input_ids, int64[B,5] attention_mask, int64[B,5] token_type_ids) => (float[B,5,2] y)
<float[7,2] words = {0,1,2,3,4,5,6,7,8,9,10,11,12,13}, float[2,2] types = {0,1,2,3}> {
  a = Gather (words, input_ids)
  flat = Cast <to = 6> (token_type_ids)
  b = Gather (types, flat)
  c = Add (a, b)
  axis = Constant <value_ints = [2]> ()
  m = Unsqueeze (attention_mask, axis)
  f = Cast <to = 1> (m)
  y = Mul (c, f)
}
"""


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def classifier(gain: float = 1.0) -> ir.Model:
    return parse(CLASSIFIER.replace("GAIN", str(gain)).replace("SCALE", "gain"))


def unary(operator: str, kind: str = "float[B,4]", result: str = "") -> ir.Model:
    return parse(f"{HEAD}main ({kind} x) => ({result or kind} y) {{ y = {operator} (x) }}")


def test_a_model_equals_itself() -> None:
    report = check(classifier(), classifier())
    assert report.ok
    assert report.samples == 8
    logits, table = report.outputs
    assert (logits.cosine_min, logits.relative_l2, logits.max_abs, logits.agreement) == (1, 0, 0, 1)
    assert table.agreement is None
    assert table.shape == ("B", 3, 24)
    assert report.function_form is None
    json.dumps(report.as_dict(), allow_nan=False)
    console = Console(width=120, record=True, quiet=True)
    console.print(report)


def test_function_form_is_compared_with_the_inlined_form() -> None:
    report = tokenrt.check(classifier(), parse(FUNCTION))
    assert report.ok
    assert report.function_form == {"logits": 0.0, "map": 0.0}


def test_drift_is_measured_and_reported_only() -> None:
    report = check(classifier(), classifier(-1.1), seed=3, batch=3, samples=2)
    assert report.ok
    drift = report.outputs[0]
    assert drift.samples == 6
    assert drift.cosine_min == pytest.approx(-1)
    assert drift.relative_l2 == pytest.approx(2.1, rel=1e-5)
    assert drift.agreement is not None
    assert drift.agreement < 1


def test_thresholds_make_a_verdict() -> None:
    report = check(classifier(), classifier(-1.0), min_cosine=0.9, min_agreement=0.9)
    assert not report.ok
    assert [reason.split(":")[0] for reason in report.reasons] == ["output 'logits'"] * 2
    assert "cosine -1.00000 is below 0.9" in report.reasons[0]


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, second, third = (check(classifier(), classifier(-1.1), seed=seed) for seed in (5, 5, 6))
    assert first == second
    assert first != third


def test_values_that_are_not_finite_are_a_reason() -> None:
    report = check(unary("Identity"), unary("Log"))
    assert not report.ok
    assert report.reasons == ("output 'y': not all values of the reduced model are finite",)
    assert report.outputs[0].cosine_min is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_another_shape_is_a_reason() -> None:
    shorter = parse(
        f"{HEAD}main (float[B,4] x) => (float[B,3] y) {{ s = Constant <value_ints = [0]> ()\n"
        "e = Constant <value_ints = [3]> ()\n a = Constant <value_ints = [1]> ()\n y = Slice (x, s, e, a) }"
    )
    report = check(unary("Identity"), shorter)
    assert report.reasons == (
        "output 'y': shape [2, 3], the original gives [2, 4]",
        "interface: output 'y' is [B,3] in the reduced model, [B,4] in the original",
    )


def test_a_shape_that_is_no_longer_static_is_a_reason() -> None:
    loose = parse(f"{HEAD}main (float[B,4] x) => (float[B,N] y) {{ n = Shape (x)\n y = Reshape (x, n) }}")
    assert check(unary("Identity"), loose).ok
    dynamic = parse(
        f"{HEAD}main (float[B,4] x) => (float[B,N] y) {{ z = Constant <value_ints = [4]> ()\n"
        "m = Mod (z, z)\n k = Add (m, z)\n s = Constant <value_ints = [0]> ()\n"
        "a = Constant <value_ints = [1]> ()\n y = Slice (x, s, k, a) }"
    )
    report = check(unary("Identity"), dynamic)
    assert not report.ok
    assert "is not static in the reduced model" in report.reasons[0]
    assert not report.outputs[0].static


def test_other_outputs_and_inputs_are_refused_by_name() -> None:
    other = parse(f"{HEAD}main (float[B,4] x) => (float[B,4] z) {{ z = Neg (x) }}")
    with pytest.raises(
        ModelError, match="outputs of the two models differ: y in the original, z in the reduced"
    ):
        check(unary("Neg"), other)
    other = parse(f"{HEAD}main (float[B,4] w) => (float[B,4] y) {{ y = Neg (w) }}")
    with pytest.raises(ModelError, match="inputs of the two models differ: x in the original, w"):
        check(unary("Neg"), other)
    with pytest.raises(
        ShapeError, match=r"input 'x' is FLOAT \[\?,4\] in the original and INT32 \[\?,4\] in the"
    ):
        check(unary("Neg"), unary("Neg", "int32[B,4]"))


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    bad = unary("Neg")
    bad.graph.node(0).op_type = "Nothing"
    with pytest.raises(ModelError, match=r"cannot run the reduced model: .*Nothing"):
        check(unary("Neg"), bad)
    with pytest.raises(ModelError, match="no such model file"):
        check(unary("Neg"), tmp_path / "none.onnx")


def test_a_model_lowered_for_plugins_is_refused_by_node() -> None:
    bare = tokenrt.lower(parse(FUNCTION), plugin=True).model
    with pytest.raises(ModelError, match=r"tokenrt\.Mean node .* has no function body"):
        check(classifier(), bare)


def test_indices_stay_in_their_table_and_masks_are_ones() -> None:
    model = parse(TEXT)
    made, told = feeds(inputs_of(model, model), model, data=None, batch=3, seed=0, samples=20)
    ids = np.stack([feed["input_ids"] for feed in made])
    assert (ids.min(), ids.max(), ids.shape, ids.dtype) == (0, 6, (20, 3, 5), np.int64)
    assert {int(value) for feed in made for value in feed["token_type_ids"].flat} == {0, 1}
    assert all((feed["attention_mask"] == 1).all() for feed in made)
    assert told == "seeded noise (seed 0)"
    assert check(model, model).ok


def test_sizes_that_only_the_reduced_model_fixes_are_used() -> None:
    assert check(unary("Neg", "float[B,N]"), unary("Neg", "float[2,4]"), batch=7).samples == 8


def test_an_unknown_size_is_refused_with_the_remedy() -> None:
    with pytest.raises(ShapeError, match=r"axis 1 of input 'x' \[\?,\?\] is dynamic.*--data.*--shape"):
        check(unary("Neg", "float[B,N]"), unary("Neg", "float[B,N]"))


def test_half_precision_and_booleans() -> None:
    assert check(unary("Neg", "float16[B,4]"), unary("Neg", "float16[B,4]")).ok
    assert check(unary("Not", "bool[B,4]"), unary("Not", "bool[B,4]")).outputs[0].cosine_mean == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    check(classifier(), parse(FUNCTION))
    assert capfd.readouterr() == ("", "")


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_an_archive_of_samples_and_one_of_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", x=pixels(5, 3, 4, 6))
    report = check(classifier(), classifier(), data=tmp_path / "samples.npz", batch=2)
    assert (report.samples, report.data) == (5, "samples.npz")
    np.savez(tmp_path / "batches.npz", pixels(4, 3, 3, 4, 6))
    assert check(classifier(), classifier(), data=str(tmp_path / "batches.npz")).samples == 12


def test_a_fixed_batch_takes_whole_batches() -> None:
    model = unary("Neg", "float[2,4]")
    assert check(model, model, data={"x": pixels(5, 4)}).samples == 4
    with pytest.raises(TokenrtError, match="holds 1 samples, the model takes batches of 2"):
        check(model, model, data={"x": pixels(1, 4)})


def test_directories_of_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", x=pixels(2, 3, 4, 6))
    report = check(classifier(), classifier(), data=tmp_path)
    assert (report.samples, report.data) == (6, f"3 .npz files of {tmp_path.name}")
    other = tmp_path / "npy"
    other.mkdir()
    np.save(other / "a.npy", pixels(3, 4, 6))
    np.save(other / "b.npy", pixels(2, 3, 4, 6))
    assert check(classifier(), classifier(), data=other).samples == 3


def test_pictures_are_resized_and_normalised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra demo)")
    for name, colour in (("a.png", (255, 0, 0)), ("b.JPG", (0, 0, 0)), ("c.bmp", (0, 0, 255))):
        image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (tmp_path / ".hidden.npz").write_text("")
    model = classifier()
    made, told = feeds(inputs_of(model, model), model, data=tmp_path, batch=2, seed=0, samples=1)
    assert [feed["x"].shape for feed in made] == [(2, 3, 4, 6), (1, 3, 4, 6)]
    red = (1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225
    np.testing.assert_allclose(made[0]["x"][0, :, 2, 3], red, rtol=1e-5)
    assert told == f"3 pictures of {tmp_path.name}"
    assert check(model, model, data=tmp_path).samples == 3


def test_pictures_for_another_kind_of_input_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(TokenrtError, match=r"pictures serve a float input \[B,3,H,W\] of fixed size"):
        check(unary("Neg"), unary("Neg"), data=tmp_path)
    with pytest.raises(TokenrtError, match="not a readable picture"):
        check(classifier(), classifier(), data=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DependencyError, match=r"tokenrt\[demo\]"):
        check(classifier(), classifier(), data=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.zeros((2, 5), np.int64)}, "no array for input attention_mask, token_type_ids"),
        (
            {
                name: np.zeros((2, 5), np.int64)
                for name in ("input_ids", "attention_mask", "token_type_ids", "z")
            },
            "z is no input; inputs: attention_mask",
        ),
        (
            {
                "input_ids": np.zeros((9, 5), np.int64),
                "attention_mask": np.zeros((4, 5), np.int64),
                "token_type_ids": np.zeros((2, 5), np.int64),
            },
            "different numbers of runs",
        ),
        (
            {name: np.zeros((2, 4), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")},
            r"array 'input_ids' has shape \[2,4\], expected samples of input 'input_ids' \[\?,5\]",
        ),
        (
            {
                name: np.zeros((2, 5), np.float32)
                for name in ("input_ids", "attention_mask", "token_type_ids")
            },
            "'input_ids' is float32, the input takes int64: convert it first",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenrtError, match=message):
        check(parse(TEXT), parse(TEXT), data=arrays)


def test_pixels_as_bytes_are_refused() -> None:
    with pytest.raises(TokenrtError, match="is uint8, the input takes float32: convert it first, scaled"):
        check(classifier(), classifier(), data={"x": np.zeros((2, 3, 4, 6), np.uint8)})


def test_data_that_is_not_there(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "it holds none of them"), (tmp_path / "none", "no such file")):
        with pytest.raises(TokenrtError, match=message):
            check(classifier(), classifier(), data=path)
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(TokenrtError, match=r"not a readable \.npz file"):
        check(classifier(), classifier(), data=tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", pixels(3, 4, 6))
    with pytest.raises(TokenrtError, match=r"one kind only; it holds 1 npz and 1 npy"):
        check(classifier(), classifier(), data=tmp_path)


@pytest.mark.parametrize("options", [{"batch": 0}, {"samples": 0}])
def test_counts_start_at_one(options: dict[str, int]) -> None:
    with pytest.raises(TokenrtError, match="both count from 1"):
        check(classifier(), classifier(), **options)


def test_one_sample_by_hand() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[4.0, 3.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    sample = compare({"y": a}, {"y": b})["y"]
    assert sample.cosines == pytest.approx((24 / 25, 1, 0))
    assert (sample.difference, sample.norm, sample.max_abs, sample.agreeing) == (3, 26, 1, 2)
