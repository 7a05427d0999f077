"""Reducing the tokens of an output: what it holds then, and what the model tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.helpers.projectors import FORMS, pictures, tower
from tests.passes.helpers.running import session
from tokenrt.errors import MethodError, NothingToDoError, PlanError, TokenrtError, UnsupportedError
from tokenrt.passes.checking.check import check
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import plan, reduce

BY_ROWS, BY_ATTENTION = "divprune", "topk"


def run(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs by name."""
    made = session(model)
    names = [value.name for value in made.get_outputs()]
    return dict(zip(names, made.run(names, inputs), strict=True))


def rows(array: Any) -> Any:
    return array.reshape(-1, *array.shape[-2:])


@pytest.mark.parametrize("method", [BY_ROWS, BY_ATTENTION])
@pytest.mark.parametrize("form", FORMS)
def test_kept_rows_are_rows_of_the_full_output(form: str, method: str) -> None:
    full, made = (
        run(tower(form), pictures(form)),
        reduce(tower(form), method=method, budget=Budget.keep(0.5), site="output"),
    )
    found = run(made.model, pictures(form))
    kept = found.pop("kept_index")
    assert (np.diff(kept) > 0).all()
    for name, whole in full.items():
        assert found[name].shape[-2] == made.plan.outputs[0].tokens
        wanted = np.take_along_axis(rows(whole), kept[..., None], axis=1)
        np.testing.assert_allclose(rows(found[name]), wanted, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("form", ["mlp", "stitched", "deepstack"])
def test_check_compares_the_rows_that_are_left(form: str) -> None:
    made = reduce(
        tower(form),
        method=BY_ATTENTION,
        budget=Budget.tokens([4 if form != "stitched" else 40]),
        site="output",
    )
    report = check(tower(form), made.model, samples=1)
    assert report.ok, report.reasons
    assert report.outputs[0].relative_l2 == pytest.approx(0, abs=1e-5)


def test_attention_is_that_of_the_class_token_over_the_rows() -> None:
    """The choice behind the projector is the one at the last block, where the class token is protected."""
    at_output = reduce(tower("mlp"), method="topk", budget=Budget.tokens([9]), site="output")
    at_block = reduce(
        tower("mlp"), method="topk", budget=Budget.tokens([10], [2]), site="after-block", short="all"
    )
    one, other = (run(made.model, pictures("mlp")) for made in (at_output, at_block))
    np.testing.assert_array_equal(one["kept_index"], other["kept_index"])
    np.testing.assert_allclose(one["image_features"], other["image_features"], atol=1e-5)


def test_a_choice_by_attention_moves_in_front_of_the_projector() -> None:
    by_attention = plan(tower("mlp"), method=BY_ATTENTION, budget=Budget.keep(0.25), site="output")
    by_rows = plan(tower("mlp"), method=BY_ROWS, budget=Budget.keep(0.25), site="output")
    assert by_attention.macs_after < by_attention.macs_before == by_rows.macs_after


def test_an_earlier_block_can_be_read() -> None:
    made = [
        reduce(tower("mlp"), method="topk", budget=Budget.tokens([9]), site="output", tap_layer=layer)
        for layer in (0, -1)
    ]
    first, last = (run(each.model, pictures("mlp"))["kept_index"] for each in made)
    assert (first != last).any()
    with pytest.raises(MethodError, match="block 7 does not exist"):
        reduce(tower("mlp"), method="topk", budget=Budget.tokens([9]), site="output", tap_layer=7)


def test_newlines_and_protected_rows_stay() -> None:
    made = reduce(tower("stitched"), method=BY_ROWS, budget=Budget.tokens([40]), site="output", protect="0,5")
    kept = run(made.model, pictures("stitched"))["kept_index"][0].tolist()
    assert {0, 5, *(36 + 13 * row + 12 for row in range(12))} <= {*kept}
    assert kept == sorted(kept)


def test_only_a_span_leaves() -> None:
    made = reduce(tower("mlp"), method=BY_ROWS, budget=Budget.tokens([20]), site="output", span="4:30")
    kept = run(made.model, pictures("mlp"))["kept_index"]
    for picture in kept.tolist():
        assert {*range(4), *range(30, 36)} <= {*picture}


def test_frames_of_a_clip_are_one_sequence() -> None:
    made = reduce(tower("resized"), method=BY_ROWS, budget=Budget.tokens([20]), site="output", grid=(4, 4, 4))
    full, found = (run(model, pictures("resized")) for model in (tower("resized"), made.model))
    assert found["image_features"].shape == (1, 20, 40)
    every = full["image_features"].reshape(64, 40)
    np.testing.assert_allclose(found["image_features"][0], every[found["kept_index"][0]], atol=1e-6)


def test_merging_tells_where_each_token_went() -> None:
    made = reduce(tower("mlp"), method="tome", budget=Budget.remove(10), site="output")
    found, full = (run(model, pictures("mlp")) for model in (made.model, tower("mlp")))
    goes = found["token_source_map"]
    assert found["image_features"].shape == (2, 26, 40)
    assert goes.shape == (2, 36)
    for picture in range(2):
        for token in range(26):
            mean = full["image_features"][picture][goes[picture] == token].mean(0)
            np.testing.assert_allclose(found["image_features"][picture, token], mean, atol=1e-4)


def test_what_mixes_tokens_leaves_other_outputs_of_their_axis_alone() -> None:
    with pytest.raises(UnsupportedError, match="'deepstack_0', 'deepstack_1', which can follow a selection"):
        reduce(tower("deepstack"), method="tome", budget=Budget.remove(3), site="output")


def test_outputs_stay_short_behind_blocks() -> None:
    made = reduce(tower("mlp"), method="topk", budget=Budget.keep(0.5, [0]), short="image_features")
    found = run(made.model, pictures("mlp"))
    assert found["image_features"].shape == (2, 18, 40)
    assert found["kept_index"].shape == (2, 18)
    assert found["kept_index"].min() >= 0
    assert made.report.restored == ()


def test_a_plan_merges_in_the_tower_and_selects_at_the_output(tmp_path: Path) -> None:
    """One plan is what reducing twice makes."""
    first = reduce(tower("mlp"), method="tome", budget=Budget.remove(4, [0]), short="all")
    twice = reduce(first.model, method=BY_ROWS, budget=Budget.tokens([9]), site="output")
    text = first.plan.to_toml()
    own = '[[site]]\nwhere = "output"\noutput = "image_features"\narriving = 32\ntokens = 9\nmethod = "divprune"\n'
    (tmp_path / "plan.toml").write_text(f"{text}\n{own}")
    once = reduce(tower("mlp"), plan=tmp_path / "plan.toml")
    found, other = (run(made.model, pictures("mlp")) for made in (once, twice))
    assert [*found] == [*other] == ["image_features", "token_source_map"]
    for name, value in found.items():
        np.testing.assert_allclose(value, other[name], atol=1e-6)
    assert {node.op_type for node in twice.model.graph} >= {"TokenMatch", "TokenCombine", "TokenGreedySelect"}
    assert Plan.load(tmp_path / "plan.toml").outputs == once.plan.outputs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"site": "output:logits"}, PlanError, "no output of that name"),
        (
            {"site": "output", "budget": Budget.tokens([37])},
            PlanError,
            "37 tokens cannot stay: the output has 36",
        ),
        (
            {"site": "output", "budget": Budget.tokens([36])},
            NothingToDoError,
            "removes none of the 36 tokens",
        ),
        ({"site": "output", "budget": Budget.flops(0.5)}, PlanError, "--flops divides tokens over blocks"),
        ({"site": "output", "budget": Budget.keep(0.5, [1])}, PlanError, "--layers names blocks"),
        ({"site": "output", "span": "8"}, PlanError, "--span 8: expected S:E"),
        ({"site": "output", "span": "8:90"}, PlanError, "positions must lie among the 36 tokens"),
        (
            {"site": "output", "span": "0:2", "budget": Budget.tokens([9])},
            PlanError,
            "34 of them never leave",
        ),
        ({"site": "output", "short": "all"}, PlanError, "--short is about tokens that leave inside"),
        ({"tap_layer": 1}, PlanError, "--tap-layer goes with --site output"),
        ({"short": "logits", "budget": Budget.remove(3)}, PlanError, "--short logits: no row for each token"),
        ({"site": "output", "grid": (5, 5)}, PlanError, "5 x 5|25"),
        ({"site": "output", "method": "tomesd"}, PlanError, "tokens that tomesd removes come back"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: dict[str, Any], error: type[TokenrtError], message: str
) -> None:
    given: dict[str, Any] = {"method": BY_ROWS, "budget": Budget.keep(0.5), **options}
    with pytest.raises(error, match=message):
        reduce(tower("mlp"), **given)


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    made = plan(tower("mlp"), method=BY_ROWS, budget=Budget.keep(0.5), site="output")
    made.save(tmp_path / "plan.toml")
    with pytest.raises(PlanError, match="36 tokens of output 'image_features', the model has 9 there"):
        reduce(tower("pooled"), plan=tmp_path / "plan.toml")


def test_inputs_that_a_method_reads_become_the_models() -> None:
    with pytest.raises(PlanError, match="--shape text="):
        reduce(tower("mlp"), method="cdpruner", budget=Budget.tokens([4]), site="output")
    with pytest.raises(PlanError, match="text=3x5x40: the output has any number of pictures"):
        reduce(
            tower("mlp"), method="cdpruner", budget=Budget.tokens([4]), site="output", shape=["text=3x5x40"]
        )
    made = reduce(
        tower("mlp"), method="cdpruner", budget=Budget.tokens([4]), site="output", shape=["text=Bx5x40"]
    )
    text = np.random.default_rng(0).normal(size=(2, 5, 40)).astype(np.float32)
    found = run(made.model, pictures("mlp") | {"text": text})
    other = run(made.model, pictures("mlp") | {"text": -text})
    assert found["image_features"].shape == (2, 4, 40)
    assert (found["kept_index"] != other["kept_index"]).any()


def test_inspect_lists_what_reduce_takes() -> None:
    for form in ("stitched", "deepstack"):
        for outlet in inspect(tower(form)).outlets:
            made = reduce(tower(form), method="slice", budget=Budget.remove(1), site=f"output:{outlet.name}")
            assert made.plan.outputs[0].arriving == outlet.tokens
    assert str(inspect(tower("shuffled")).outlets[0]).startswith(
        "output image_features has 9 tokens, a grid of 3x3, each of 4 behind the blocks: --site output:image_features"
    )


def test_the_host_is_told_beside_the_model(tmp_path: Path) -> None:
    reduce(tower("mlp"), method=BY_ROWS, budget=Budget.tokens([9]), site="output", output=tmp_path / "r.onnx")
    told = json.loads((tmp_path / "r.onnx.json").read_text())
    assert told["index"] == "kept_index"
    assert told["outputs"]["image_features"] == ["batch", 9, 40]
    assert told["plan"]["sites"][0]["arriving"] == 36
    assert told["ascending"]
    by_score = {
        "method": BY_ROWS,
        "options": {"order": "score"},
        "budget": Budget.tokens([9]),
        "site": "output",
    }
    reduce(tower("mlp"), output=tmp_path / "s.onnx", **by_score)
    assert not json.loads((tmp_path / "s.onnx.json").read_text())["ascending"]
    assert any("placeholders" in line for line in told["host"])
    reduce(tower("mlp"), method="tome", budget=Budget.remove(2), output=tmp_path / "whole.onnx")
    assert not (tmp_path / "whole.onnx.json").exists()
    reduce(tower("mlp"), method="tome", budget=Budget.remove(2), output=tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx.json").exists()
    (tmp_path / "r.onnx.json").write_text('{"mine": 1}')
    reduce(tower("mlp"), method="tome", budget=Budget.remove(2), output=tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx.json").read_text() == '{"mine": 1}'


def test_weights_may_be_arrays_where_no_plan_is_saved(tmp_path: Path) -> None:
    weights = {"prototypes": np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)}
    made = reduce(
        tower("mlp"),
        method="embedlens",
        budget=Budget.tokens([9]),
        site="output",
        options={"weights": weights},
    )
    assert run(made.model, pictures("mlp"))["image_features"].shape == (2, 9, 40)
    with pytest.raises(PlanError, match="option 'weights' of embedlens holds arrays"):
        made.plan.save(tmp_path / "plan.toml")
