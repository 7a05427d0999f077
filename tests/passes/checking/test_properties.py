"""Faulty reductions made by hand, each found by the property it breaks; sound ones, and originals that break it themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import tokenrt
from tests.passes.helpers import tiny
from tokenrt.cli import app
from tokenrt.errors import ModelError
from tokenrt.passes.checking import properties, ties
from tokenrt.passes.checking.batches import Batch
from tokenrt.passes.checking.check import CheckReport, check
from tokenrt.passes.checking.choices import Site
from tokenrt.passes.checking.verdict import FAILED, HELD, SILENT, Property
from tokenrt.passes.graph.model import save

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'

MEAN_OF = "  mean = ReduceMean <axes = [1], keepdims = 0> (b1_out)\n  y = MatMul (mean, w1)\n"


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def blocks(between: str = "", *, batch: int | str = "B", head: str = MEAN_OF) -> ir.Model:
    """Two blocks of the tiny transformer, whose attention takes any number of tokens, and what stands between them."""
    made = tiny.model(
        head,
        attention=tiny.FLAT_ATTENTION,
        between=between,
        inputs=f"float[{batch},6,4] x",
        output=f"float[{batch},8] y",
    )
    return ir.from_proto(made)


def line(report: CheckReport, name: str) -> Property:
    (found,) = (each for each in report.properties if each.name == name)
    return found


def states(report: CheckReport) -> dict[str, str]:
    return {each.name: each.state for each in report.properties}


def failed(report: CheckReport) -> set[str]:
    found = {each.name for each in report.properties if each.state == FAILED}
    assert report.ok == (not report.reasons)
    assert all(any(reason.startswith(f"{name}: ") for reason in report.reasons) for name in found)
    return found


FOUR = "  four = Constant <value_ints = [4]> ()\n  none = Constant <value_ints = [0]> ()\n"
"""Numbers for slices."""

TOKENS_CUT = FOUR + "  axis = Constant <value_ints = [1]> ()\n  b1_in = Slice (b0_out, none, four, axis)\n"


def test_tokens_that_are_cut_are_sound() -> None:
    report = check(blocks(), blocks(TOKENS_CUT))
    assert not failed(report)
    assert states(report) == {
        "interface": HELD,
        "repeats itself": HELD,
        "batch permuted": HELD,
        "pictures alone": HELD,
        "nothing removed": HELD,
    }
    report = check(blocks(batch=6), blocks(TOKENS_CUT, batch=6))
    assert not failed(report)
    assert line(report, "other pictures changed").state == HELD


def test_pictures_that_are_cut_instead_of_tokens() -> None:
    """Six pictures of six tokens: the last two stay as the first block left them."""
    cut = FOUR + (
        "  b1_in = Slice (b0_out, none, four, none)\n"
        "  end = Constant <value_ints = [6]> ()\n  stale = Slice (b0_out, four, end, none)\n"
    )
    head = "  b1_all = Concat <axis = 0> (b1_out, stale)\n" + MEAN_OF.replace("b1_out", "b1_all")
    report = check(blocks(batch=6), blocks(cut, batch=6, head=head))
    assert failed(report) == {"batch permuted"}
    found = line(report, "batch permuted")
    assert found.number is not None
    assert found.threshold is not None
    assert found.number > 100 * found.threshold
    assert "output 'y'" in found.why
    assert check(blocks(batch=6), blocks(cut, batch=6, head=head), properties=False).ok


LEAK = """
  rated = ReduceMean <axes = [0, 2], keepdims = 0> (b0_out)
  best, chosen = TopK <axis = 0> (rated, four)
  b1_in = Gather <axis = 1> (b0_out, chosen)
"""


@pytest.mark.parametrize(("batch", "name"), [("B", "pictures alone"), (5, "other pictures changed")])
def test_scores_averaged_over_the_batch(batch: int | str, name: str) -> None:
    """Every order of the pictures has the same average, so only other company tells."""
    report = check(blocks(batch=batch), blocks(FOUR + LEAK, batch=batch), batch=5, seed=2)
    assert failed(report) == {name}


@pytest.mark.parametrize(("batch", "name"), [("B", "pictures alone"), (2, "other pictures changed")])
def test_two_pictures_that_trade_places(batch: int | str, name: str) -> None:
    """Two that are swapped before and after give the swapped outputs: the order says nothing."""
    turn = FOUR + (
        "  start = Constant <value_ints = [-1]> ()\n  end = Constant <value_ints = [-9]> ()\n"
        "  b1_in = Slice (b0_out, start, end, none, start)\n"
    )
    assert failed(check(blocks(batch=batch), blocks(turn, batch=batch))) == {name}
    assert failed(check(blocks(batch=batch), blocks(turn, batch=batch), batch=3)) >= {name}


def test_a_reduced_model_that_has_fixed_a_free_batch() -> None:
    fixed = "  shape = Constant <value_ints = [2, 6, 4]> ()\n  b1_in = Reshape (b0_out, shape)\n"
    report = check(blocks(), blocks(fixed))
    assert failed(report) == {"pictures alone"}
    assert "the reduced model does not run when a picture runs alone" in report.reasons[0]


def selected(
    change: Callable[[ir.Model, ir.Value], ir.Value], batch: int | str = "B"
) -> tuple[ir.Model, ir.Model]:
    """The tiny transformer and its reduction by topk, whose score [B,6] is changed on the way to the selection."""
    before = blocks(batch=batch)
    after = tokenrt.reduce(
        before, method="topk", budget=tokenrt.Budget.remove(2, [0]), options={"score": "key_norm"}
    ).model
    (select,) = (node for node in after.graph if node.op_type == "TokenSelect")
    assert select.inputs[0] is not None
    select.replace_input_with(0, change(after, select.inputs[0]))
    return before, after


def chain(
    model: ir.Model, value: ir.Value, *steps: tuple[str, dict[str, Any], tuple[float, ...]]
) -> ir.Value:
    """Apply operators one behind the other, in front of the selection; each takes one constant where it has numbers."""
    (select,) = (node for node in model.graph if node.op_type == "TokenSelect")
    for operator, attributes, numbers in steps:
        inputs = [value]
        for number in numbers:
            constant = ir.node("Constant", [], attributes={"value_float": number})
            model.graph.insert_before(select, constant)
            inputs.append(constant.outputs[0])
        node = ir.node(operator, inputs, attributes=attributes)
        model.graph.insert_before(select, node)
        value = node.outputs[0]
        value.dtype, value.shape = ir.DataType.FLOAT, select.inputs[0].shape  # type: ignore[union-attr]
    return value


def summed(model: ir.Model, value: ir.Value, other: ir.Value) -> ir.Value:
    (select,) = (node for node in model.graph if node.op_type == "TokenSelect")
    node = ir.node("Add", [value, other])
    model.graph.insert_before(select, node)
    node.outputs[0].dtype, node.outputs[0].shape = value.dtype, value.shape
    return node.outputs[0]


def mixed(model: ir.Model, score: ir.Value) -> ir.Value:
    """What the batch scores on average, for every picture."""
    mean = chain(model, score, ("ReduceMean", {"axes": [0], "keepdims": 1}, ()))
    return summed(model, chain(model, score, ("Mul", {}, (0.0,))), mean)


def test_a_leak_into_a_selection_is_no_near_tie() -> None:
    found = failed(check(*selected(mixed), batch=4, seed=1))
    assert found == {"pictures alone"}
    assert not failed(check(*selected(lambda _, score: score), batch=4, seed=1))


def test_near_ties_are_told_and_do_not_fail() -> None:
    """All scores are 1 but for the last digits, which depend on the company, as those of a sum do."""

    def tied(model: ir.Model, score: ir.Value) -> ir.Value:
        return chain(model, mixed(model, score), ("Mul", {}, (1e-7,)), ("Add", {}, (1.0,)))

    report = check(*selected(tied), batch=4, seed=1)
    assert not failed(report)
    found = line(report, "pictures alone")
    assert "tokens are chosen otherwise where scores tie within rounding" in found.why
    assert found.state in (HELD, SILENT)


def ran(score: list[float], index: list[int]) -> dict[str, np.ndarray]:
    return {"score": np.array([score], np.float32), "index": np.array([index])}


@pytest.mark.parametrize(
    ("score", "index", "near"),
    [
        ([9.0, 1.0, 2.0, 2.000001, 4.0], [0, 3, 4], False),
        ([9.0, 1.0, 2.000001, 2.0, 4.0], [0, 2, 4], True),
        ([9.0, 1.0, 2.0, 2.000002, 4.0], [0, 1, 4], False),
        ([9.0, 1.0, 3.0, 2.0, 4.0], [0, 2, 4], False),
    ],
    ids=["alike", "tie", "far from the cut", "other scores"],
)
def test_a_near_tie_by_hand(score: list[float], index: list[int], near: bool) -> None:
    choice = ties.Choice(("score",), ("index",), Site("TokenSelect", keep=3, protect=1, sources=()))
    one = ran([9.0, 1.0, 2.0, 2.000001, 4.0], [0, 3, 4])
    assert ties.near([choice], one, ran(score, index), (0, 0), (1, 1), 2.0**-13) is near


def test_an_original_that_couples_its_pictures_is_told_apart() -> None:
    centred = "  m = ReduceMean <axes = [0], keepdims = 1> (b0_out)\n  b1_in = Sub (b0_out, m)\n"
    report = check(blocks(centred), blocks(centred))
    assert report.ok
    for name in ("batch permuted", "pictures alone"):
        assert line(report, name).state == SILENT
        assert "the original mixes its pictures in output 'y'" in line(report, name).why


def test_a_first_axis_of_tokens_is_no_batch() -> None:
    """Attention over the first axis keeps any order of it; a token alone tells."""
    text = "main (float[N,4] x) => (float[N,4] y) { t = Transpose (x)\n s = MatMul (x, t)\n a = Softmax (s)\n"
    whole = parse(f"{text} y = MatMul (a, x) }}")
    cut = parse(
        f"{text} h = Constant <value_ints = [1]> ()\n v, i = TopK <axis = 0> (x, h)\n y = Sub (x, v) }}"
    )
    assert check(whole, cut).ok
    assert line(check(whole, cut), "batch permuted").state == SILENT


def test_an_output_without_a_batch_axis_is_left_out() -> None:
    text = "main (float[B,4] x) => (float[B,4] y, float loss) { y = Neg (x)\n loss = ReduceMean <keepdims = 0> (x)"
    report = check(parse(text + "}"), parse(text + "}"))
    assert report.ok
    assert "output 'loss' has no batch axis" in line(report, "batch permuted").why
    assert line(report, "batch permuted").state == HELD


def test_a_batch_of_one_has_nothing_to_permute() -> None:
    report = check(blocks(batch=1), blocks(TOKENS_CUT, batch=1))
    assert report.ok
    assert line(report, "batch permuted").why == "the batch is fixed to one picture"


@pytest.mark.parametrize("data", [None, {"x": np.ones((1, 6, 4), np.float32)}], ids=["noise", "data"])
def test_one_sample_gets_a_second_one(data: Any) -> None:
    report = check(blocks(), blocks(FOUR + LEAK), batch=1, data=data, samples=1)
    assert line(report, "batch permuted").state == HELD
    assert failed(report) <= {"pictures alone"}


def test_pictures_that_are_all_the_same_tell_nothing() -> None:
    report = check(blocks(), blocks(TOKENS_CUT), data={"x": np.ones((2, 6, 4), np.float32)})
    assert line(report, "batch permuted").why == "the pictures of the batch are all the same"


def test_inputs_that_count_other_things() -> None:
    text = "main (float[B,4] x, float[M,4] t) => (float[B,M] y) { u = Transpose (t)\n y = MatMul (x, u) }"
    made = np.random.default_rng(0)
    data = {"x": made.random((1, 2, 4), np.float32), "t": made.random((1, 3, 4), np.float32)}
    report = check(parse(text), parse(text), data=data)
    assert report.ok
    assert "count other things on their first axes ('x' 2, 't' 3)" in line(report, "batch permuted").why
    assert check(parse(text), parse(text)).ok


def test_inputs_of_fixed_sizes_the_batch_is_what_an_output_counts() -> None:
    text = "main (float[3,4] x, float[5,4] t, int64[1] n) => (float[3,5] y) { u = Transpose (t)\n y = MatMul (x, u) }"
    report = check(parse(text), parse(text))
    assert (line(report, "batch permuted").state, line(report, "other pictures changed").state) == (
        HELD,
        HELD,
    )


def test_a_random_original_is_told_and_random_numbers_that_froze_fail() -> None:
    text = "main (float[B,4] x) => (float[B,4] y, float[B,4] z) { n = RandomNormalLike (x)\n y = Add (x, n)\n z = Neg (x) }"
    report = check(parse(text), parse(text))
    assert report.ok
    assert line(report, "repeats itself").state == SILENT
    assert "output 'y' of the original is random" in line(report, "batch permuted").why
    report = check(parse(text), parse(text.replace("RandomNormalLike", "Neg")))
    assert failed(report) == {"repeats itself"}
    assert any("random numbers became constants" in reason for reason in report.reasons)


def test_a_form_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(properties.Canonicalize):
        def __call__(self, model: ir.Model) -> ir.Model:
            made = super().__call__(model)
            next(node for node in made.graph if node.op_type == "Relu").op_type = "Abs"
            return made

    monkeypatch.setattr(properties, "Canonicalize", Broken)
    assert failed(check(blocks(), blocks(TOKENS_CUT))) == {"nothing removed"}


def outputs(*names: str, kind: str = "float") -> ir.Model:
    """Outputs [B,4] by these names, each another operator of the input."""
    operators = {"a": "Neg", "b": "Abs", "c": "Exp", "token_source_map": "Floor"}
    text = "\n".join(f"{name} = {operators[name]} (x)" for name in dict.fromkeys(names))
    return parse(
        f"main ({kind}[B,4] x) => ({', '.join(f'{kind}[B,4] {name}' for name in names)}) {{ {text} }}"
    )


def test_an_output_that_is_lost_and_one_that_is_listed_again() -> None:
    again = outputs("a", "c")
    again.graph.outputs.append(again.graph.outputs[1])
    report = check(outputs("a", "b", "c"), again)
    assert failed(report) == {"interface"}
    told = line(report, "interface").why
    assert "output 'b' of the original is missing in the reduced model" in told
    assert "output 'c' is listed 2 times in the reduced model, the original lists it 1" in told
    assert [drift.output for drift in report.outputs] == ["a", "c"]


@pytest.mark.parametrize(
    ("reduced", "told"),
    [
        (lambda: outputs("b", "a"), "the outputs stand in the order b, a, in the original a, b"),
        (lambda: outputs("a", "b", "c"), "output 'c' of the reduced model is none of the original's"),
        (lambda: outputs("a", "b", "token_source_map"), ""),
    ],
    ids=["order", "more", "source map"],
)
def test_other_outputs(reduced: Callable[[], ir.Model], told: str) -> None:
    report = check(outputs("a", "b"), reduced(), properties=False)
    assert [each.name for each in report.properties] == ["interface"]
    assert report.reasons == ((f"interface: {told}",) if told else ())


def test_a_half_form_has_the_same_doors_and_an_integer_has_not() -> None:
    assert check(outputs("a"), outputs("a", kind="float16")).ok
    wide = parse("main (float[B,4] x) => (float[B,4] y) { y = Neg (x) }")
    whole = parse("main (float[B,4] x) => (int64[B,4] y) { n = Neg (x)\n y = Cast <to = 7> (n) }")
    report = check(wide, whole)
    assert "output 'y' is INT64 in the reduced model, FLOAT in the original" in line(report, "interface").why


def test_a_lost_input_is_named() -> None:
    two = parse("main (float[B,4] x, float[B,4] m) => (float[B,4] y) { y = Mul (x, m) }")
    one = parse("main (float[B,4] x) => (float[B,4] y) { y = Neg (x) }")
    report = check(two, one)
    assert failed(report) == {"interface"}
    assert "input 'm' of the original is missing in the reduced model" in report.reasons[0]
    with pytest.raises(
        ModelError, match="the inputs of the two models differ: x in the original, m, x in the"
    ):
        check(one, two)


def test_shots_compare_the_pictures_they_hold() -> None:
    x = np.arange(5, dtype=np.float32)[:, None]
    batch = Batch({"x": x, "t": np.zeros(1)}, 5, frozenset({"x"}), True)
    for shot in (*batch.permuted(0), *batch.alone(), *batch.changed()):
        assert len(shot.feed["x"]) == shot.size
        assert len(shot.feed["t"]) == 1
        assert all(shot.feed["x"][own, 0] == place for own, place in shot.pairs)
    assert [shot.pairs for shot in batch.alone()] == [((0, 0),), ((0, 1),), ((0, 3),), ((0, 4),)]
    assert [shot.feed["x"][:, 0].tolist() for shot in batch.changed()] == [[0, 0, 2, 2, 4], [1, 1, 3, 3, 1]]


def test_the_command_ends_with_1_and_may_leave_them_out(tmp_path: Path) -> None:
    files = [
        str(save(model, tmp_path / name))
        for name, model in (("m.onnx", blocks(batch=5)), ("r.onnx", blocks(FOUR + LEAK, batch=5)))
    ]
    result = CliRunner().invoke(app, ["check", *files, "--json", "--seed", "2"])
    assert result.exit_code == 1
    found = {each["name"]: each for each in json.loads(result.stdout)["properties"]}
    assert found["other pictures changed"]["state"] == "failed"
    assert set(found["batch permuted"]) == {"name", "state", "number", "threshold", "why"}
    shown = CliRunner().invoke(app, ["check", *files, "--seed", "2"])
    assert shown.exit_code == 1
    assert "batch permuted: held" in shown.stdout
    assert "other pictures changed: failed" in shown.stdout
    assert CliRunner().invoke(app, ["check", *files, "--no-properties"]).exit_code == 0
