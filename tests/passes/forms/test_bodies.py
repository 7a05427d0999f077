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


def body(model: ir.Model, name: str) -> list[str]:
    return [node.op_type for key, function in model.functions.items() if key[1] == name for node in function]


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
    gpu = OPERATORS["TokenMatch"].gpu
    assert gpu is not None
    half = [*range(0, 4096, 2)]
    assert not gpu.fits({"others": [], "sources": half, "destinations": half})
    reduced = reduce(Variant("timm_vit").path(), method="tome", budget=METHODS["tome"]).model
    for node in reduced.graph:
        if node.op_type == "TokenMatch":
            node.attributes["others"] = ir.AttrInt64s("others", [0] * 3000)
            break
    bodies.for_gpu(reduced)
    assert "TopK" in body(reduced, "TokenMatch")
    assert "TopK" not in body(reduced, "TokenCombine")
    assert all(key[0] == DOMAIN for key in reduced.functions)
