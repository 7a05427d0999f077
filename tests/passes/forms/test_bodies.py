"""Bodies for GPUs: targets that fuse get them, others do not, and what a model computes stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.helpers.running import Variant, close, feeds, run
from tokenrt.passes.forms import bodies
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.targets import load

METHODS = {"tome": Budget.remove(3), "topk": Budget.keep(0.6, [1]), "evit": Budget.keep(0.6, [1])}


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


def test_a_mean_over_heads_is_no_product_there_in_half_precision_too() -> None:
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    half = convert(reduced, precision="fp16", keep_io=True, rules="standard", check=False).model
    for model in (reduced, half):
        means = [
            node.name
            for node in model.graph
            if node.op_type == "MatMul" and str(node.name).startswith("tokenrt_")
        ]
        assert len(means) == len(METHODS) + 1
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
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    before = Counter(node.op_type for node in reduced.graph if node.domain == DOMAIN)
    made = lower(reduced, target=load("l4"), plugin=True).model
    assert Counter(node.op_type for node in made.graph if node.domain == DOMAIN) == before


def test_every_node_that_is_put_in_tells_its_block() -> None:
    """An engine's layers are made of them, and a profile adds up layers by block."""
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    known = {node.name for node in reduced.graph}
    made = lower(reduced, target=load("rtx-sm89")).model
    assert not made.functions
    names = [str(node.name) for node in made.graph]
    assert len(set(names)) == len(names)
    assert all(name.startswith("tokenrt_block") for name in names if name not in known)
