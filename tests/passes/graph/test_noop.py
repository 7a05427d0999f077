"""Removing nothing changes nothing: the outputs of the canonical model are those of the original."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.helpers.running import (
    FUSABLE,
    POSITIVE,
    Variant,
    distance,
    dynamo,
    exported,
    feeds,
    original,
    params,
    run,
    session,
)
from tokenrt.errors import NothingToDoError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

DEFAULT = [
    *[*exported()][::3],
    *(dynamo(name) for name in ("hf_vit", "hf_bert", "timm_vit_map")),
    dynamo("hf_dinov2", 20),
    dynamo("hf_bert", 23),
    dynamo("timm_eva", 23),
    dynamo("dense_dinov2", batch=1),
    dynamo("hf_bert", batch=1),
    Variant("hf_bert_eager", fused="transformers"),
    Variant("hf_bert_eager", fused="transformers-mha"),
    Variant("timm_vit", fused="transformers"),
    dynamo("hf_vit", fused="onnxscript"),
    dynamo("hf_bert", fused="onnxscript"),
    dynamo("timm_vit_map", fused="onnxscript"),
]
MATRIX = [
    *exported(),
    *(dynamo(name, opset) for opset in (18, 20, 23) for name in POSITIVE),
    *(dynamo(name, batch=1) for name in POSITIVE),
    *(Variant(name, fused="transformers") for name in FUSABLE),
    *(dynamo(name, fused="onnxscript") for name in POSITIVE),
]
HALF = [Variant("timm_vit", dtype="fp16"), dynamo("timm_vit", dtype="fp16", fused="onnxscript")]
HALF_MATRIX = [dynamo(name, dtype="fp16") for name in POSITIVE]


def unchanged(variant: Variant) -> ir.Model:
    result = reduce(
        variant.path(), method="tome", budget=Budget.remove(0), shape=variant.shape, allow_noop=True
    )
    assert not result.plan.sites
    assert all(site.status == "refused" and site.reason for site in result.report.sites)
    return result.model


def examples(variant: Variant) -> dict[str, np.ndarray]:
    return feeds(variant.name, 2 if variant.batch == "dynamic" else int(variant.batch))


@pytest.mark.parametrize("variant", params(DEFAULT, MATRIX))
def test_removing_nothing_leaves_the_outputs(variant: Variant) -> None:
    made = run(unchanged(variant), examples(variant))
    assert distance(made, run(original(variant), examples(variant))) <= 1e-5


@pytest.mark.parametrize("variant", params(HALF, HALF_MATRIX))
def test_half_precision_stays_as_near_to_single_precision(variant: Variant) -> None:
    """The error against fp32 is at most twice that of the model as it was, plus a rounding of the largest value."""
    inputs = examples(variant)
    exact = run(dynamo(variant.name).path(), inputs)
    before, after = run(original(variant), inputs), run(unchanged(variant), inputs)
    unit = 2.0**-11 * max(float(np.abs(output).max()) for output in exact)
    assert distance(after, exact) <= 2 * distance(before, exact) + unit


@pytest.mark.parametrize("name", ["timm_vit", "hf_bert", "dense_taps"])
def test_canonicalization_keeps_names_shapes_and_a_dynamic_batch(name: str) -> None:
    path = Variant(name).path()
    before, after = onnx.load(path), ir.to_proto(prepare(path).model)
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in after.graph.input)
    assert len(after.graph.node) < len(before.graph.node)


def test_canonicalizing_again_changes_nothing() -> None:
    once = prepare(Variant("hf_bert").path()).model
    twice = prepare(once).model
    assert Counter(node.op_type for node in once.graph) == Counter(node.op_type for node in twice.graph)


def test_a_model_given_as_an_object_stays_as_it_is() -> None:
    given = ir.load(Variant("timm_vit").path())
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    reduce(given, method="tome", budget=Budget.remove(2))
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before


def test_removing_nothing_is_refused_unless_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    with pytest.raises(NothingToDoError, match="--allow-noop"):
        reduce(Variant("timm_vit").path(), method="tome", budget=Budget.remove(0), output=target)
    assert not [*tmp_path.iterdir()]
    reduce(Variant("timm_vit").path(), method="tome", budget=Budget.remove(0), output=target, allow_noop=True)
    assert session(target).get_outputs()[0].shape == original(Variant("timm_vit")).get_outputs()[0].shape
