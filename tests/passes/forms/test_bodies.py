"""Bodies for GPUs: targets that fuse get them, others do not, and what a model computes stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.helpers.running import Variant, close, feeds, run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.forms import bodies
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.forms.legalize import legalize
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.targets import load

METHODS = {
    "tome": Budget.remove(3),
    "pitome": Budget.remove(3),
    "topk": Budget.keep(0.6, [1]),
    "evit": Budget.keep(0.6, [1]),
}


def body(model: ir.Model, name: str, block: int = 0) -> list[str]:
    """The operators that compute a node of ours: in its function, or put in its place and named after it."""
    inside = f"tokenrt_block{block}_{name}_"
    return [
        node.op_type for key, function in model.functions.items() if key[1] == name for node in function
    ] + [node.op_type for node in model.graph if str(node.name).startswith(inside) and node.domain == ""]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm_vit", "hf_siglip_pooled"])
def test_a_model_computes_the_same_with_them(name: str, method: str) -> None:
    reduced = reduce(Variant(name).path(), method=method, budget=METHODS[method]).model
    wanted = run(reduced, feeds(name, 3))
    made = lower(reduced, target=load("rtx-sm89"))
    assert any("body for GPUs" in change.action for change in made.changes)
    close(run(made.model, feeds(name, 3)), wanted)
    assert lower(made.model, target=load("rtx-sm89")).changes == ()


def test_a_sort_is_gone_on_a_target_that_fuses_and_stays_on_others() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    assert Counter(body(reduced, "TokenMatch"))["TopK"] == 2
    assert "TopK" not in body(lower(reduced, target=load("rtx-sm89")).model, "TokenMatch")
    for target in ("ort-cpu", "ort-cuda"):
        assert "TopK" in body(lower(reduced, target=load(target)).model, "TokenMatch")


def test_no_list_is_empty_there() -> None:
    """TensorRT-RTX takes no constant of no entries: without a class token no position is beside sources and destinations."""
    reduced = reduce(Variant("hf_siglip_pooled").path(), method="tome", budget=METHODS["tome"]).model
    lowered = lower(reduced, target=load("rtx-sm89")).model
    read = {value for node in lowered.graph for value in node.inputs if value is not None}
    constants = [ir.convenience.get_const_tensor(value) for value in read]
    assert not [constant.name for constant in constants if constant is not None and constant.size == 0]


def test_a_mean_over_heads_is_no_product_there_in_half_precision_too() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    half = convert(reduced, precision="fp16", keep_io=True, rules="standard", check=False).model
    for model in (reduced, half):
        means = [
            node.name
            for node in model.graph
            if node.op_type == "MatMul" and str(node.name).startswith("tokenrt_")
        ]
        assert len(means) == 4  # One a block.
        lowered = lower(model, target=load("rtx-sm89")).model
        assert not [node for node in lowered.graph if node.name in means]
    wanted, found = (
        run(half, feeds("timm_vit", 2)),
        run(lower(half, target=load("rtx-sm89")).model, feeds("timm_vit", 2)),
    )
    np.testing.assert_allclose(found[0], wanted[0], atol=2e-2)


def test_large_numbers_of_tokens_keep_the_portable_body() -> None:
    """Each node for itself: what is dear at one site is not at another."""
    for name, shapes, attributes in (
        ("TokenMatch", [(4096, 64)], {"sources": range(2048), "destinations": range(2048)}),
        ("TokenSelect", [(8192,)], {"keep": [100]}),
        ("TokenCombine", [(1025, 1024), (1025, 1), (900,), (125,), (125,)], {}),
        ("TokenScore", [(6, 197, 64)] * 2 + [()], {"first_row": [0], "end_row": [5]}),
    ):
        gpu = OPERATORS[name].gpu
        assert gpu is not None
        assert not gpu.fits(attributes, shapes)
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    first = next(node for node in reduced.graph if node.op_type == "TokenMatch")
    sources = first.attributes["sources"].as_ints()
    first.attributes["sources"] = ir.AttrInt64s("sources", [*sources, *[sources[0]] * 5000])
    changes = bodies.for_gpu(reduced)
    assert "TopK" in body(reduced, "TokenMatch")
    assert "TopK" not in body(reduced, "TokenMatch", 1)
    told = {change.node: change.action for change in changes}
    assert told["tokenrt_block0_TokenMatch_0"] == "given the portable body"
    assert told["tokenrt_block1_TokenMatch_1"] == "given the body for GPUs"


def test_what_shapes_leave_open_keeps_the_portable_body() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    given = reduced.graph.inputs[0]
    given.shape = ir.Shape(["batch", 3, "height", "width"])
    bodies.for_gpu(reduced)
    assert "TopK" in body(reduced, "TokenMatch")


def test_what_a_target_cannot_sort_is_counted_whatever_it_costs() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="topk", budget=METHODS["topk"]).model
    reduced.graph.inputs[0].shape = ir.Shape(["batch", 3, "height", "width"])
    few = reduced.clone()
    bodies.for_gpu(reduced, top_k=4)
    assert "TopK" not in body(reduced, "TokenSelect", 1)
    bodies.for_gpu(few, top_k=400)
    assert "TopK" in body(few, "TokenSelect", 1)


def test_nodes_that_run_as_plugins_stay() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="evit", budget=METHODS["evit"]).model
    before = Counter(node.op_type for node in reduced.graph if node.domain == DOMAIN)
    made = lower(reduced, target=load("l4"), plugin=True).model
    assert Counter(node.op_type for node in made.graph if node.domain == DOMAIN) == before


def test_a_node_beyond_its_plugin_keeps_its_function() -> None:
    """The other nodes are plugins; the one that is not is standard operators, in the body that suits a GPU."""
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    first, *_ = (node for node in reduced.graph if node.op_type == "TokenMatch")
    asked: list[tuple[str, Any]] = []

    def refuses(operator: str, shapes: Any, attributes: Any) -> str:
        asked.append((operator, shapes))
        return "too many" if attributes.get("sources") == first.attributes["sources"].value else ""

    accepts = replace(load("l4").accepts(), plugin_refuses=refuses)
    made = reduced.clone()
    changes = legalize(made, accepts, bare=True)
    assert [
        (change.node, change.reason) for change in changes if change.action == "left to its function"
    ] == [(first.name, "too many")]
    left = [node.name for node in made.graph if node.domain == DOMAIN]
    assert first.name not in left
    assert any(str(name).startswith("tokenrt_block1_TokenMerge") for name in left)
    assert any(str(node.name).startswith(f"{first.name}/") for node in made.graph)
    assert all(shape[0] is None and None not in shape[1:] for _, (shape, *_) in asked)  # the batch is open
    assert not [key for key in made.functions if key[1] == "TokenMatch" and key[2]]
    onnx.checker.check_model(ir.to_proto(made))


def test_a_bare_node_beyond_its_plugin_is_refused_by_name() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    bare = lower(reduced, plugin=True).model
    accepts = replace(load("l4").accepts(), plugin_refuses=lambda *_: "no")
    with pytest.raises(
        UnsupportedError, match=r"has no function body in the model, and its plugin does not take it: no; use"
    ):
        legalize(bare, accepts, bare=True)


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "told"),
    [
        ("TokenMatch", [(None, 197, 64)], {"order": 0}, ""),
        ("TokenMatch", [None], {"order": 0}, ""),
        ("TokenMatch", [(1, 20000, 64)], {"order": 0}, "N of its input 'metric' is 20000, the plugin takes up to 16384"),
        ("TokenMeans", [(1, 197, 64), (1, 197), (1, 20)], {"rounds": 101}, "rounds is 101, the plugin takes 1 to 100"),
        ("TokenGreedySelect", [(1, 577, 8193), (1, 577)], {"keep": [9]}, "D of its input 'metric' is 8193, the plugin takes"),
        ("TokenGreedySelect", [(None, 16384, 1024), (None, 16384)], {"keep": [8192]}, "keep x N x D is 137438953472, the"),
        ("TokenGroupSelect", [(1, 2050)], {"lengths": [2] * 1025}, "lengths holds 1025 numbers, the plugin takes up to 1024"),
        ("TokenNew", [(1, 2)], {}, "there is no plugin of this operator"),
    ],
)  # fmt: skip
def test_what_a_target_of_tensorrt_knows_of_its_plugins(
    operator: str, shapes: Any, attributes: Any, told: str
) -> None:
    assert load("l4").accepts().plugin_refuses(operator, shapes, attributes).startswith(told)
    assert bool(load("l4").accepts().plugin_refuses(operator, shapes, attributes)) == bool(told)


def test_every_node_that_is_put_in_tells_its_block() -> None:
    """An engine's layers are made of them, and a profile adds up layers by block."""
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    known = {node.name for node in reduced.graph}
    made = lower(reduced, target=load("rtx-sm89")).model
    assert not made.functions
    names = [str(node.name) for node in made.graph]
    assert len(set(names)) == len(names)
    assert all(name.startswith("tokenrt_block") for name in names if name not in known)
