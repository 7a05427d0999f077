"""What a site costs in engine layers has a ceiling: an operator's body that grows is seen without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import zoo
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.graph.model import load
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.engines import YES
from tokenrt.perf.bench.gpu import builds, engine_layers
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.cost import fusion
from tokenrt.targets.layers import layers
from tokenrt.targets.rtx.builder import TENSORRT_RTX

pytest.importorskip(TENSORRT_RTX.module, reason="needs tensorrt-rtx")

HERE = {"date": "", "processor": "", "processors": 2, "versions": {}}
ONCE = Budget.keep(0.7, [1])
BUDGETS = {"tome": Budget.remove(8), "pitome": Budget.remove(8), "topk": ONCE, "evit": ONCE}
CEILINGS: Mapping[str, Mapping[int, float]] = {
    "tome": {1: 6, 8: 0},
    "pitome": {1: 8.5, 8: 3.5},
    "topk": {1: 2, 8: 0},
    "evit": {1: 3, 8: 0},
}
"""Layers a site by batch, on three blocks of the widths of DeiT-S, float16; TensorRT-RTX 1.7.1."""

OTHERS = {
    "algm": 8,
    "atc": 37,
    "ats": 17,
    "avit": 3,
    "bat": 46,
    "diffrate": 15,
    "divprune": 20,
    "dpcknn": 25,
    "dymu": 6,
    "evovit": 4,
    "gtp": 35,
    "kmedoids": 35,
    "ltmp": 28,
    "mctf": 52,
    "pomt": 22,
    "random": 0,
    "slice": 0,
    "tofu": 4,
    "token_pooling": 43,
    "token_transforming": 12,
    "tomesd": 9,
    "topvim": 1,
    "zerotprune": 42,
}
"""The same of the other methods that need no training, one image; expedit and mustdrop leave no such count."""


@pytest.mark.parametrize(
    "name",
    ["timm_vit", "timm_vit_qk_norm", "timm_vit_map", "timm_eva", "torchvision_vit", "hf_siglip_pooled"],
)
def test_launches_of_a_whole_model_are_about_the_layers_of_its_engine(name: str) -> None:
    """The rule has 35 to 51, the builder 37 to 52: a tenth less at the most, where it splits what the rule takes for one."""
    path = zoo.onnx(name)
    prepared = prepare(path)
    half = convert(load(path), precision="fp16", keep_io=False, check=False).model
    made = len(layers(half, capability="8.9", batch=1))
    assert 0.9 * made <= fusion.whole(prepared.model.graph, prepared.shapes) <= made


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engines are built, not remembered."""
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = PlainViT(width=384, heads=6, blocks=3, patch=16)
    return form.write(tmp_path_factory.mktemp("vit") / "vit.onnx")


@pytest.mark.parametrize(
    "capability", ["8.9", *(pytest.param(other, marks=pytest.mark.slow) for other in ("8.0", "12.0"))]
)
@pytest.mark.parametrize("batch", [1, 8])
def test_no_site_costs_more_than_its_ceiling(model: Path, batch: int, capability: str) -> None:
    found = engine_layers.run(BUDGETS, batches=(batch,), model=model, capabilities=(capability,))
    each = {(row.method, row.form): row.each for row in found.rows}
    for method, ceilings in CEILINGS.items():
        assert each[method, "for GPUs"] <= ceilings[batch]
        assert each[method, "for GPUs"] < each[method, "portable"]
    assert {(row.fused, row.attentions) for row in found.rows} == {(3, 3)}
    assert "| `tome` |" in found.page(HERE)


@pytest.mark.slow
def test_nor_do_the_other_methods(model: Path) -> None:
    others = dict.fromkeys(engine_layers.untrained(), ONCE)
    found = engine_layers.run(others, batches=(1,), model=model, capabilities=("8.9",))
    assert {row.method for row in found.rows} == {*OTHERS}
    assert {row.method: row.each for row in found.rows if row.each > OTHERS[row.method]} == {}
    assert set(found.refused) == {"expedit", "mustdrop"}
    page = found.page(HERE)
    assert "- `expedit`: " in page
    assert "TokenPeaks" in page


def test_what_runs_on_arrays_alone_is_not_built() -> None:
    assert not {"ras", "token_shuffle", "h2o", "fastv"} & {*builds.named()}
    assert {"tome", "divprune", "mqt", "lrs_vqa"} <= {*builds.named()}


def test_what_is_not_built_is_told() -> None:
    page = "\n".join(builds.told({"tome": YES, "divprune": "the builder says no"}))
    assert "1 of 2 are built" in page
    assert "| Merging pairs | `tome` |" in page
    assert "- `divprune`: the builder says no" in page


@pytest.mark.slow
def test_every_method_is_built_for_every_capability() -> None:
    built = builds.run()
    assert {name: answer for name, answer in built.items() if answer != YES} == {}
    page = "\n".join(builds.told(built))
    assert f"{len(built)} of {len(built)} are built" in page
