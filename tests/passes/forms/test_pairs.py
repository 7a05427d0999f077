"""Matching and merging written as TokenMerge: only where plugins run it, and everything else as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers.running import Variant, feeds, run
from tokenrt.passes.forms.bodies import shapes_of
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.forms.legalize import legalize, takes_all
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.forms.pairs import join
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.targets import load

PAIRING = (
    "sources = [0, 2, 4], destinations = [1, 3, 5], others: ints = [], keep = [4], remove = [2], order = 0"
)
GRAPH = f"""<ir_version: 10, opset_import: ["": 18, "tokenrt": 1]>
main (float[B,6,4] x, float[B,6,1] size, float[B,6,3] metric) => (float[B,4,4] merged, float[B,4,3] means, int64[B,4] kept) {{
  value, kept, source, slot = tokenrt.TokenMatch <{PAIRING}> (metric)
  early = Neg (kept)
  tokens = Relu (x)
  MERGING
}}
"""
FIRST = "merged, total = tokenrt.TokenCombine <type = 1> (tokens, size, kept, source, slot)"
SECOND = "means, again = tokenrt.TokenCombine <type = 1> (metric, size, kept, source, slot)"


def parsed(*merging: str) -> ir.Model:
    proto = onnx.parser.parse_model(GRAPH.replace("MERGING", "\n  ".join(merging)))
    for number, node in enumerate(proto.graph.node):  # names as a reduction gives them
        node.name = f"tokenrt_block3_{node.op_type}_{number}"
    proto.functions.extend(
        OPERATORS[name].function(18) for name in ("TokenMatch", "TokenCombine", "TokenRestore")
    )
    return ir.from_proto(proto)


def joined(model: ir.Model) -> list[str]:
    told = [str(change) for change in join(model, shapes_of(model), takes_all)]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return told


def ours(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def values(shape: Sequence[int]) -> Any:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(np.float32)


GIVEN = {"x": values((3, 6, 4)), "size": np.ones((3, 6, 1), np.float32), "metric": values((3, 6, 3))}


def test_the_first_of_several_is_joined_and_others_read_its_pairs() -> None:
    """The outputs of the graph keep their names, and what stands between the two nodes comes behind."""
    for order in ((FIRST, SECOND), (SECOND, FIRST)):
        model = parsed(*order)
        wanted = run(model, GIVEN)
        (told,) = joined(model)
        assert "joined with tokenrt_block3_TokenCombine_3" in told
        assert ours(model) == {"TokenMerge": 1, "TokenCombine": 1}
        assert {key[1] for key in model.functions} == {"TokenMerge", "TokenCombine", "TokenRestore"}
        assert [node.name for node in model.graph if node.op_type == "TokenMerge"] == [
            "tokenrt_block3_TokenMerge_0"
        ]
        for found, before in zip(run(model, GIVEN), wanted, strict=True):
            np.testing.assert_array_equal(found, before)


def test_functions_that_nobody_calls_any_more_go() -> None:
    model = parsed(FIRST, "means = tokenrt.TokenRestore (metric, kept)")
    assert joined(model)
    assert {key[1] for key in model.functions} == {"TokenMerge", "TokenRestore"}


def test_tokens_that_follow_from_the_pairs_are_not_merged_with_them() -> None:
    weighed = "weight = ReduceSum (value)", "weighed = Mul (tokens, weight)"
    model = parsed(*weighed, FIRST.replace("(tokens,", "(weighed,"), SECOND)
    wanted = run(model, GIVEN)
    assert len(joined(model)) == 1
    (left,) = (node for node in model.graph if node.op_type == "TokenCombine")
    assert left.inputs[0] is not None
    assert left.inputs[0].name == "weighed"
    for found, before in zip(run(model, GIVEN), wanted, strict=True):
        np.testing.assert_array_equal(found, before)


def test_lists_that_were_changed_are_no_pairs() -> None:
    other = FIRST.replace("kept, source, slot", "same, source, slot")
    model = parsed("same = Identity (kept)", other, SECOND.replace("kept, source", "same, source"))
    assert joined(model) == []
    assert ours(model) == {"TokenMatch": 1, "TokenCombine": 2}


def test_what_the_plugin_refuses_stays_apart() -> None:
    model = parsed(FIRST, SECOND)
    asked: list[tuple[str, Any]] = []

    def refuses(operator: str, shapes: Any, attributes: Any) -> str:
        asked.append((operator, shapes))
        return "no"

    assert [*join(model, shapes_of(model), refuses)] == []
    assert asked == [("TokenMerge", [[None, 6, 4], [None, 6, 1], [None, 6, 3]])]


@pytest.mark.parametrize("method", ["tome", "tofu"])
def test_only_forms_with_plugins_have_it_and_it_computes_the_same(method: str) -> None:
    reduced = reduce(Variant("timm_vit").path(), method=method, budget=Budget.remove(3)).model
    before = ours(reduced)
    assert before["TokenMatch"]
    assert not before["TokenMerge"]
    made = lower(reduced, target=load("l4"), plugin=True)
    after = ours(made.model)
    assert after["TokenMerge"] == sum("joined" in change.action for change in made.changes) > 0
    for name in ("TokenMatch", "TokenCombine"):
        assert after[name] == before[name] - after["TokenMerge"]
    assert (after["TokenMatch"] == 0) == (method == "tome")  # tofu prunes by its pairs in early blocks
    for found, wanted in zip(
        run(made.model, feeds("timm_vit", 3)), run(reduced, feeds("timm_vit", 3)), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    assert ours(lower(reduced, target=load("rtx-sm89")).model) == {}
    assert ours(lower(reduced, target=load("ort-cpu")).model) == before


def test_a_metric_in_float32_beside_tokens_in_half() -> None:
    half = convert(
        reduce(Variant("timm_vit").path(), method="tome", budget=Budget.remove(3)).model, precision="fp16"
    ).model
    made = lower(half, target=load("l4"), plugin=True).model
    merges = [node for node in made.graph if node.op_type == "TokenMerge"]
    assert merges
    for node in merges:
        assert node.attributes["type"].value == 10
        assert [value.dtype for value in (node.inputs[0], node.outputs[0])] == [ir.DataType.FLOAT16] * 2
    onnx.checker.check_model(ir.to_proto(made))


def test_lowering_without_a_target_knows_the_limits_of_the_plugins() -> None:
    """What is beyond them becomes standard operators, and is told; what fits is a plugin."""
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=Budget.remove(3)).model
    bare = tokenrt.lower(reduced, plugin=True).model
    assert not bare.functions
    assert ours(bare) == {"TokenMerge": ours(reduced)["TokenMatch"]}
    first = next(node for node in reduced.graph if node.op_type == "TokenMatch")
    assert first.inputs[0] is not None
    wide = reduced.clone()

    def refuses(operator: str, shapes: Any, attributes: Any) -> str:
        return "too many" if attributes.get("sources") == first.attributes["sources"].value else ""

    lowered = lower(wide, plugin=True, refuses=refuses)
    assert ("left to its function", "too many") in {
        (change.action, change.reason) for change in lowered.changes
    }
    assert first.name not in {node.name for node in lowered.model.graph}
    assert not lowered.model.functions
    with_target = wide.clone()
    accepts = replace(load("agx-orin").accepts(), plugin_refuses=refuses)
    legalize(with_target, accepts, bare=True)
    assert ours(with_target) == ours(lowered.model)
