"""Quality and cost of the methods, measured on a tiny model: what is compared with what, and what the pages say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenrt.passes.budget import Budget
from tokenrt.passes.prepare import prepare
from tokenrt.perf import bench_methods, digits, quality, results, subject, timing
from tokenrt.perf.bench_methods import Cost, MethodCosts
from tokenrt.perf.plain_vit import PlainViT
from tokenrt.perf.quality import Exam, Quality, Result


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = PlainViT(width=32, heads=2, blocks=4, patch=16, image=64, classes=5)
    return form.write(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


def exam(model: Path) -> Exam:
    inputs = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    full = quality._answers(model, inputs)
    return Exam(
        "tiny",
        "Agreement.",
        model,
        inputs,
        lambda found: float(np.corrcoef(found.ravel(), full.ravel())[0, 1]),
    )


def test_every_method_leaves_the_same_counts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[list[int]]] = {}
    monkeypatch.setattr(
        quality,
        "_score",
        lambda exam, name, budget, options: asked.setdefault(name, []).append([*budget.counts]) or 0.5,
    )
    for name in ("slice", "tome", "random"):
        assert [result.score for result in quality.measure(exam(tiny), name)] == [0.5] * len(quality.SHARES)
    assert asked["slice"] == asked["tome"]
    assert len(asked["random"]) == len(quality.SEEDS) * len(quality.SHARES)
    assert asked["slice"][0] == [16, 15, 14, 13]
    assert asked["slice"][-1][-1] == 1 + 4


def test_methods_are_measured_once_more_with_tokens_leaving_late(tiny: Path) -> None:
    found = list(quality.measure(exam(tiny), "topk", late=True))
    assert [result.share for result in found] == [*quality.LATE_SHARES]
    assert all(result.late and result.score is not None for result in found)


def test_what_was_scored_is_not_scored_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(quality.measure(exam(tiny), "tome"))
    given = exam(tiny)
    monkeypatch.setattr(quality, "_answers", lambda model, inputs: pytest.fail("ran again"))
    assert list(quality.measure(given, "tome")) == first


def test_methods_are_scored_and_refusals_kept(tiny: Path) -> None:
    found = list(quality.measure(exam(tiny), "tome"))
    assert all(result.score is not None and 0 < result.score <= 1 for result in found)
    assert found[0].score > found[-1].score
    structure = prepare(tiny).structure
    assert (structure.tokens, structure.protect) == (17, 1)


def test_the_page_tells_who_loses_to_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "REASONS", {"one": {"topk": "it looks too early"}})
    scores = {"tome": 0.99, "topk": 0.90, "random": 0.95, "slice": 0.80}
    rows = [Result("one", name, share, score) for name, score in scores.items() for share in quality.SHARES]
    rows += [Result("one", "tomesd", share, None, "needs a grid") for share in quality.SHARES]
    rows += [
        Result("one", name, 0.25, score, late=True) for name, score in (("topk", 0.97), ("random", 0.96))
    ]
    page = Quality([("one", "Accuracy.", 0.995)], rows).page(results.circumstances())
    assert "| `topk` | - | 0.970 |" in page
    assert "- `topk`: it looks too early." in page
    assert "Below `random` at some share: `topk`." in page
    assert "- `tomesd`: needs a grid" in page
    assert "| `tome` | 0.990 | 0.990 | 0.990 | 0.990 |" in page


def test_there_are_twenty_pictures() -> None:
    names = [picture.name for picture in quality.pictures()]
    assert len(set(names)) == len(names) >= 20
    assert next(quality.pictures()).pixels().shape == (3, subject.SIDE, subject.SIDE)


def test_digits_are_brought_to_size_and_split_once() -> None:
    pictures, labels, tested, wanted = digits.data()
    assert pictures.shape[1:] == tested.shape[1:] == (1, digits.SIDE, digits.SIDE)
    assert len(pictures) == len(labels) == 1797 - digits.TESTED
    assert len(tested) == len(wanted) == digits.TESTED
    assert pictures.min() == -1
    assert pictures.max() <= 1
    assert (digits.data()[2] == tested).all()


def test_interpolation_keeps_a_plane() -> None:
    rows, columns = np.mgrid[:8, :8].astype(np.float32)
    larger = digits._bilinear((2 * rows + columns)[None], 32)[0]
    inner = larger[2:-2, 2:-2]
    np.testing.assert_allclose(np.diff(inner, axis=0), 0.5, atol=1e-5)
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.25, atol=1e-5)


def test_the_cost_is_the_time_above_the_floor_in_units_of_the_whole(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = {
        name: timing.Ratio(name, "slice", value, 1, 1, 4, 1, 1)
        for name, value in (("method", 1.04), ("unreduced", 2.0))
    }
    taken: list[str] = []
    monkeypatch.setattr(bench_methods, "exported", lambda source: tiny)
    monkeypatch.setattr(bench_methods.timing, "compare_afresh", lambda *a, **k: taken.append("now") or ratios)
    monkeypatch.setitem(bench_methods.BUDGETS, "merging", ("--remove 2", Budget.remove(2)))
    for _ in range(2):
        (cost,) = bench_methods.run(["tome"]).costs
        assert cost.share == pytest.approx(0.02)
    assert taken == ["now"]


def test_the_page_lists_what_costs_more_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_methods, "REASONS", {"b": "it thinks long"})
    costs = [
        Cost("a", "merging", "--remove 13", 0.02, 1.04),
        Cost("b", "pruning", "--keep 0.7", 0.07, 1.14),
        Cost("c", "merging", "", None, reason="no grid"),
    ]
    page = MethodCosts(costs, 2).page(results.circumstances())
    assert "Above 5%: `b`.\n\n- `b`: it thinks long." in page
    assert "| `a` | merging | `--remove 13` | 2.0% | 1.040 |" in page


def test_the_floor_has_the_counts_of_the_method(tiny: Path, tmp_path: Path) -> None:
    from tokenrt.passes.plan import Plan
    from tokenrt.passes.reduce import reduce

    planned = reduce(tiny, method="evit", budget=Budget.keep(0.7, [1, 2])).plan
    bench_methods._floor(tiny, planned, tmp_path / "slice.onnx")
    import onnx

    kept = {item.key: item.value for item in onnx.load(tmp_path / "slice.onnx").metadata_props}[
        "tokenrt.plan"
    ]
    (tmp_path / "plan.toml").write_text(kept)
    floor = Plan.load(tmp_path / "plan.toml")
    assert floor.method == "slice"
    assert floor.counts() == planned.counts()
