"""What `inspect` offers is what `reduce` takes, both ways, with the same reasons; and what it says is restored is restored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import onnx
import onnx.helper
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.helpers import tiny
from tests.passes.helpers.offered import AWAY, disagreements, sites
from tests.passes.helpers.running import Variant, exported
from tokenrt.errors import TokenrtError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.inspect import BlockRow, TransformerView, inspect
from tokenrt.passes.offers import Offers, Place, offers
from tokenrt.passes.planning import fit
from tokenrt.passes.planning.plan import PLACES, Where
from tokenrt.passes.rewriting.undo import undone
from tokenrt.passes.rewriting.whole import rewrite

GATE = """
  b0_mean = ReduceMean <axes = [1]> (b0_out)
  b0_gate = Sigmoid (b0_mean)
  b1_in = Mul (b0_out, b0_gate)
"""
ROWS = "float[B,6,8] y"


def with_output(name: str, *dims: int) -> onnx.ModelProto:
    """The model with an inner tensor as an output too."""
    made = tiny.model(tiny.EVERY, output=ROWS)
    made.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", *dims]))
    return made


MODELS = {
    "class token": tiny.model(),
    "mean": tiny.model(tiny.MEAN),
    "one head": tiny.model(attention=tiny.FLAT_ATTENTION),
    "folded heads": tiny.model(attention=tiny.FOLDED_ATTENTION),
    "every token": tiny.model(tiny.EVERY, output=ROWS),
    "made of other tokens": tiny.model(tiny.EVERY, output=ROWS, between=GATE),
    "first maps": with_output("b0_weights", tiny.HEADS, tiny.TOKENS, tiny.TOKENS),
    "second maps": with_output("b1_weights", tiny.HEADS, tiny.TOKENS, tiny.TOKENS),
    "inner stream": with_output("b0_out", tiny.TOKENS, tiny.WIDTH),
}
NOTHING_LEFT = {(1, "after-block"): "saves no work: .* right behind it"}
REFUSED: Mapping[str, Mapping[tuple[int, Where], str]] = {
    "made of other tokens": {
        (0, "after-attention"): "cannot be brought past Mul node",
        (0, "after-block"): "cannot be brought past Mul node",
    },
    # The maps of the second attention hold a row and a column for each token that came to it.
    "second maps": {(0, "after-attention"): "'b1_weights'", (0, "after-block"): "'b1_weights'"},
}
"""Of each model the sites at which tokens cannot leave, by what the model computes, beside the last."""


@pytest.mark.parametrize("name", MODELS)
def test_offered_is_taken(name: str) -> None:
    model = ir.from_proto(MODELS[name])
    refused = {**NOTHING_LEFT, **REFUSED.get(name, {})}
    found = inspect(model)
    assert {site[1:] for site, offered in sites(found) if not offered} == {*refused}
    for (block, where), reason in refused.items():
        assert re.search(reason, found.blocks[block].refused[where])
    assert not disagreements(model, wheres=PLACES if name in REFUSED else AWAY)


def test_the_answer_in_both_forms() -> None:
    model = ir.from_proto(MODELS["made of other tokens"])
    found = inspect(model)
    first, last = json.loads(json.dumps(found.as_dict()))["blocks"]
    assert first["sites"] == ["around-attention"]
    assert [*first["refused"]] == ["after-attention", "after-block"]
    assert last["sites"] == ["around-attention", "after-attention"]
    from rich.console import Console

    console = Console(width=400)
    with console.capture() as caught:
        console.print(found)
    shown = caught.get()
    assert "refused: block 0 after-attention: tokens that leave at 'b0_attended'" in shown
    assert f"restored: {found.first.restored[0]}" in shown


def test_equal_reasons_are_told_once() -> None:
    from rich.console import Console

    rows = [
        BlockRow(number, 1, 4, 6, "softmax", 0, (), "stream", {"after-block": reason})
        for number, reason in enumerate(("one [1]", "another", "one [1]"))
    ]
    console = Console(width=400)
    with console.capture() as caught:
        console.print(TransformerView(6, 0, None, 4, tuple(rows), (), ()).shown(""))
    told = [line.rstrip() for line in caught.get().splitlines() if line.startswith("refused")]
    assert told == ["refused: blocks 0, 2 after-block: one [1]", "refused: block 1 after-block: another"]


def read_by(model: ir.Model) -> dict[str | None, list[tuple[str | None, int]]]:
    """Who reads each value, in order."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    return {value.name: [(node.name, index) for node, index in value.uses()] for value in values}


@pytest.mark.parametrize("name", MODELS)
def test_trying_leaves_the_model_as_it_was(name: str) -> None:
    prepared = prepare(ir.from_proto(MODELS[name]))
    before, readers = ir.to_proto(prepared.model), read_by(prepared.model)
    again = [offers(prepared) for _ in range(2)]
    assert ir.to_proto(prepared.model) == before
    assert read_by(prepared.model) == readers
    assert again[0].refused == again[1].refused
    assert [*again[0].taken] == [*again[1].taken]


def test_a_rewrite_that_fails_midway_is_undone() -> None:
    prepared = prepare(ir.from_proto(MODELS["mean"]))
    before = ir.to_proto(prepared.model)
    plan = offers(prepared).taken[Place(0, 0, "after-attention")]
    routes = fit.with_cost(prepared, plan)[1]
    try:
        with undone(prepared.model):
            rewrite(prepared, plan, routes, source_map=True)
            assert [value.name for value in prepared.model.graph.outputs] == ["y", "token_source_map"]
            raise KeyError
    except KeyError:
        pass
    assert ir.to_proto(prepared.model) == before
    rewritten = rewrite(prepared, plan, routes, source_map=False)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)


@pytest.mark.parametrize("offered", [True, False], ids=["all", "none"])
def test_an_answer_that_is_not_true_is_seen(offered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of this file, on an inspect that offers everything, or nothing."""
    told = (PLACES, {}) if offered else ((), dict.fromkeys(PLACES, "so it is"))
    monkeypatch.setattr(Offers, "at", lambda self, transformer, block: told)
    found = disagreements(ir.from_proto(MODELS["second maps"]))
    assert len([text for text in found if "offered, and reduce" in text]) == (3 if offered else 1)


@pytest.mark.parametrize("name", ["timm_vit", "dense_taps"])
def test_a_sample_of_the_zoo(name: str) -> None:
    path = Variant(name).path()
    for one in (2, -1):
        assert not disagreements(path, one=one)


@pytest.mark.slow
@pytest.mark.parametrize("variant", exported(), ids=str)
def test_all_of_the_zoo(variant: Variant) -> None:
    assert not disagreements(variant.path(), variant.shape, wheres=PLACES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.names("negative") if "decode" not in name])
def test_what_is_not_offered_at_all(name: str) -> None:
    try:
        assert not disagreements(Variant(name).path(), wheres=PLACES)
    except TokenrtError as error:
        pytest.skip(f"inspect refuses it as well: {error}")
