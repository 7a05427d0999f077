"""Work against an independent counter, memory against ONNX Runtime's arena, and both on graphs small enough to count by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import zoo
from tests.passes.helpers.running import POSITIVE, Variant, exported
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.costs import cost_of
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing

SOME = ("timm_vit", "hf_dinov2", "hf_clip", "hf_siglip", "hf_bert")
SMALL = PlainViT(width=96, heads=3, blocks=3, patch=16, image=96, classes=10)
REDUCED = [
    ("tome", Budget.remove(6)),
    ("topk", Budget.remove(6)),
    ("evit", Budget.keep(0.5, [1])),
    ("divprune", Budget.keep(0.5, [1])),
    ("dpcknn", Budget.keep(0.5, [0])),
    ("tomesd", Budget.remove(12)),
]


def _some_first(names: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(v, id=str(v), marks=() if v.name in SOME else pytest.mark.slow) for v in exported(names)
    ]


@pytest.mark.parametrize("variant", _some_first(POSITIVE))
def test_work_is_what_torch_counts(variant: Variant) -> None:
    """torch counts what its kernels are called with, and knows nothing of ONNX."""
    module, inputs, _ = zoo.build(variant.name)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**inputs)
    found = cost_of(prepare(variant.path()).model, batch=len(next(iter(inputs.values()))))
    assert found.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
    assert not found.uncounted


def test_work_is_what_fvcore_counts() -> None:
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed: pip install 'tokenrt[dev]'")
    module, inputs, _ = zoo.build("hf_bert_eager")
    counted = fvcore.FlopCountAnalysis(module, tuple(inputs.values())).unsupported_ops_warnings(False)
    products = sum(counted.by_operator()[name] for name in ("conv", "linear", "matmul"))
    images = len(next(iter(inputs.values())))
    assert cost_of(prepare(Variant("hf_bert_eager").path()).model, images).macs == pytest.approx(
        products, rel=0.01
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    path = SMALL.write(tmp_path_factory.mktemp("costs") / "model.onnx")
    with Workbench.of(path, threads=1) as bench:
        yield bench


def _peaks(bench: Workbench, model: ir.Model, batch: int) -> tuple[int, int]:
    feed = timing.feeds(bench.session(model), batch)
    return cost_of(model, batch).peak, bench.peak(model, feed)


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_is_what_the_arena_holds(bench: Workbench, batch: int) -> None:
    counted, held = _peaks(bench, bench.reducer.prepared.model, batch)
    assert counted == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize(("method", "budget"), REDUCED, ids=[method for method, _ in REDUCED])
def test_memory_of_a_reduced_model_too(bench: Workbench, method: str, budget: Budget) -> None:
    model = bench.reducer.reduce(bench.reducer.plan(method, budget)).model
    counted, held = _peaks(bench, model, 2)
    assert counted == pytest.approx(held, rel=0.15)


@pytest.mark.parametrize("variant", exported(SOME[:4]), ids=str)
def test_memory_of_exported_models(variant: Variant) -> None:
    with Workbench.of(variant.path(), threads=1) as bench:
        counted, held = _peaks(bench, bench.reducer.prepared.model, 2)
        assert counted == pytest.approx(held, rel=0.15)


def test_the_work_of_a_reduction_counts(bench: Workbench) -> None:
    """ToMe compares the tokens at odd places with those at even ones, but for the class token; keys are
    means over heads, and the six tokens that leave are added to the six that take them by a product."""
    planned = bench.reducer.plan("tome", Budget.remove(6))
    found = cost_of(bench.reducer.reduce(planned).model)
    free, width = [n - 1 for n in planned.arriving()], SMALL.width // SMALL.heads
    compared = sum((n // 2) * (n - n // 2) * width for n in free)
    averaged = sum((n + 1) * SMALL.width for n in free)
    merged = sum(6 * 6 * SMALL.width for _ in free)
    assert found.macs - planned.macs_after == compared + averaged + merged


def test_an_unreduced_model_costs_what_a_plan_says(bench: Workbench) -> None:
    planned = bench.reducer.plan("topk", Budget.remove(6))
    assert cost_of(bench.reducer.prepared.model).macs == planned.macs_before
    assert cost_of(bench.reducer.prepared.model, batch=4).macs == 4 * planned.macs_before


TEXT = """
<ir_version: 10, opset_import: ["" : 18]>
small (float[N,4,8] x) => (float[N,2,16] y) <float[8,8] w = {%s}, int64[3] shape = {0,2,16}> {
  product = MatMul(x, w)
  double = Add(product, product)
  root = Sqrt(double)
  shown = Relu(root)
  y = Reshape(shown, shape)
}
"""


def test_by_hand(tmp_path: Path) -> None:
    """The product, and what Add and Sqrt make, are 128 bytes an image each; Relu writes over, Reshape moves nothing."""
    import onnx
    import onnx.parser

    path = tmp_path / "small.onnx"
    onnx.save(onnx.parser.parse_model(TEXT % ",".join(["1"] * 64)), path)
    found = cost_of(ir.load(path), batch=3)
    assert found.macs == 3 * 4 * 8 * 8
    assert found.peak == 2 * 3 * 128
    # The product reads x and w and writes; the group of three reads that once and writes once.
    assert found.moved == 3 * 128 + 256 + 3 * 128 + 3 * 128 + 3 * 128
    assert found.weights == 256 + 3 * 8
