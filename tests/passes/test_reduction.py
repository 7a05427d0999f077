"""Removal works: every architecture and method keeps shapes, stays finite and treats rows independently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import onnxruntime
import pytest

import tokenrt
from tests import zoo
from tests.passes.helpers.running import (
    FUSABLE,
    POSITIVE,
    Array,
    Variant,
    attended,
    close,
    distance,
    dynamo,
    exported,
    feeds,
    original,
    params,
    rows,
    run,
    session,
)
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.graph.model import load, save
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

METHODS = ("tome", "evit", "topk", "random", "slice")
OPSETS = (18, 20, 23)
SOME = ("timm_vit", "hf_bert", "hf_siglip", "dense_taps")
FORMS = [
    dynamo("hf_vit"),
    dynamo("hf_dinov2", 20),
    dynamo("hf_bert", 23),
    dynamo("timm_eva", 23),
    dynamo("dense_dinov2", batch=1),
    dynamo("hf_bert", batch=1),
    Variant("hf_bert_eager", fused="transformers-mha"),
    Variant("timm_vit", fused="transformers"),
    dynamo("hf_bert", fused="onnxscript"),
    dynamo("timm_vit_map", fused="onnxscript"),
]
MATRIX = [
    *(dynamo(name, opset) for opset in OPSETS for name in POSITIVE),
    *(dynamo(name, batch=1) for name in POSITIVE),
    *(Variant(name, fused="transformers") for name in FUSABLE),
    *(dynamo(name, fused="onnxscript") for name in POSITIVE),
]


@dataclass(frozen=True)
class Case:
    """A reduced model at work on three rows, or on as many as its batch is fixed to."""

    variant: Variant
    reduced: Reduced
    run: onnxruntime.InferenceSession
    inputs: dict[str, Array]
    outputs: list[Array]


@lru_cache(maxsize=2)
def made(variant: Variant, method: str) -> Case:
    result = reduce(
        variant.path(),
        method=method,
        budget=Budget.remove(8 if zoo.entry(variant.name).tokens > 60 else 2),
        shape=variant.shape,
    )
    inputs = feeds(variant.name, 3 if variant.batch == "dynamic" else int(variant.batch))
    ready = session(result.model)
    return Case(variant, result, ready, inputs, run(ready, inputs))


def cases(default: Iterable[tuple[Variant, str]], slow: Iterable[tuple[Variant, str]] = ()) -> list[Any]:
    first = list(dict.fromkeys(default))
    rest = [pair for pair in dict.fromkeys(slow) if pair not in first]
    return [pytest.param(pair, id=f"{pair[0]}-{pair[1]}") for pair in first] + [
        pytest.param(pair, id=f"{pair[0]}-{pair[1]}", marks=pytest.mark.slow) for pair in rest
    ]


PAIRS = cases(
    [
        *((variant, "tome") for variant in exported()),
        *((variant, method) for variant in exported(SOME) for method in METHODS),
        *((variant, method) for variant in FORMS for method in ("tome", "evit")),
    ],
    [
        *((variant, method) for variant in exported() for method in METHODS),
        *((variant, method) for variant in MATRIX for method in ("tome", "evit", "topk")),
    ],
)


@pytest.fixture(params=PAIRS)
def case(request: pytest.FixtureRequest) -> Case:
    return made(*request.param)


def test_a_reduced_model_does_what_the_plan_says(case: Case) -> None:
    """Shapes stay, numbers are finite, something changed, and every attention sees the planned count."""
    before = run(original(case.variant), case.inputs)
    assert [output.shape for output in case.outputs] == [output.shape for output in before]
    assert all(np.isfinite(output).all() for output in case.outputs)
    assert distance(case.outputs, before) > 1e-4
    entry, plan = zoo.entry(case.variant.name), case.reduced.plan
    assert (plan.tokens, plan.protect, plan.blocks) == (entry.tokens, entry.protected, entry.blocks)
    assert len(plan.counts()) == entry.blocks + 1
    assert attended(case.reduced.model, case.inputs)[: entry.blocks] == plan.counts()[:-1]
    if case.variant.batch == "dynamic":
        turned = {name: value[[2, 0, 1]] for name, value in case.inputs.items()}
        close(run(case.run, turned), rows(case.outputs, [2, 0, 1]))
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in case.inputs.items()}
            close(run(case.run, alone), rows(case.outputs, slice(row, row + 1)))


FILES = cases(
    [(variant, method) for variant in exported(("hf_bert", "dense_taps")) for method in METHODS]
    + [(dynamo("hf_bert", 23), "tome"), (Variant("timm_vit_map"), "tome")],
    [(variant, method) for variant in exported() for method in ("tome", "evit")],
)


@pytest.mark.parametrize("pair", FILES)
def test_a_file_holds_the_same_model_and_the_inlined_form_says_the_same(
    pair: tuple[Variant, str], tmp_path: Path
) -> None:
    case = made(*pair)
    path = save(case.reduced.model, tmp_path / "reduced.onnx")
    onnx.checker.check_model(path, full_check=True)
    for output, again in zip(case.outputs, run(path, case.inputs), strict=True):
        np.testing.assert_array_equal(output, again)
    assert ir.to_proto(load(path)).SerializeToString(deterministic=True) == ir.to_proto(
        load(case.reduced.model)
    ).SerializeToString(deterministic=True)
    plain = tokenrt.lower(case.reduced.model, inline=True).model
    assert {node.domain for node in plain.graph.all_nodes()} <= {"", "ai.onnx"}
    close(run(plain, case.inputs), case.outputs)


@cache
def canonical() -> ir.Model:
    """Once canonical it is quicker to reduce again."""
    return prepare(Variant("timm_vit").path()).model


BUDGETS = {
    "remove": (Budget.remove(3), None),
    "remove-at": (Budget.remove(4, [1, 3]), None),
    "keep": (Budget.keep(0.6, [0, 2]), None),
    "tokens": (Budget.tokens([14, 12, 12, 9]), [14, 12, 12, 9]),
    "tokens-at": (Budget.tokens([12], [2]), [12]),
    "flops": (Budget.flops(0.8), None),
}


@pytest.mark.parametrize("proportional", [False, None], ids=["plain", "as-published"])
@pytest.mark.parametrize("site", ["after-attention", "after-block"])
@pytest.mark.parametrize("kind", BUDGETS)
def test_every_budget_at_either_site(kind: str, site: str, proportional: bool | None) -> None:
    budget, counts = BUDGETS[kind]
    result = reduce(canonical(), method="tome", budget=budget, site=site, proportional_attention=proportional)
    plan = result.plan
    assert plan.proportional_attention == (proportional is not False)
    assert {planned.where for planned in plan.sites} == {site}
    if counts is not None:
        assert plan.counts()[1:] == list(dict.fromkeys(counts))
    seen = attended(result.model, feeds("timm_vit"))[:4]
    left = {planned.block: planned.tokens for planned in plan.sites}
    here = 17
    for block in range(4):
        assert seen[block] == here
        here = left.get(block, here)
    (output,) = run(result.model, feeds("timm_vit"))
    assert np.isfinite(output).all()


HALF = [Variant("timm_vit", dtype="fp16"), dynamo("timm_vit", dtype="fp16", fused="onnxscript")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", params(HALF, (dynamo(name, dtype="fp16") for name in POSITIVE)))
def test_half_precision(variant: Variant, method: str) -> None:
    """Where nothing is chosen by rounding, the error against fp32 is at most twice that of the whole model."""
    case = made(variant, method)
    assert all(np.isfinite(output).all() for output in case.outputs)
    before = run(original(variant), case.inputs)
    assert [output.shape for output in case.outputs] == [output.shape for output in before]
    assert [output.dtype for output in case.outputs] == [output.dtype for output in before]
    entry = zoo.entry(variant.name)
    assert attended(case.reduced.model, case.inputs)[: entry.blocks] == case.reduced.plan.counts()[:-1]
    if method in ("slice", "random"):
        single = made(dynamo(variant.name), method).outputs
        allowed = 2 * distance(before, run(dynamo(variant.name).path(), case.inputs))
        unit = 2.0**-11 * max(float(np.abs(output).max()) for output in single)
        assert distance(case.outputs, single) <= allowed + unit
