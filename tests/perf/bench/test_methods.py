"""Quality and cost of the methods, measured on a tiny model: what is compared with what, and what the pages say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenrt.errors import MethodError, TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench import methods as bench_methods
from tokenrt.perf.bench import results
from tokenrt.perf.bench.methods import Cost, MethodCosts
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.bench.quality import altered, digits, quality
from tokenrt.perf.bench.quality.experiments import ALL, LATE, ONCE, Experiment, Outcome, Trial
from tokenrt.perf.bench.quality.page import Quality, Result
from tokenrt.perf.bench.quality.quality import Exam
from tokenrt.perf.bench.quality.scores import Score
from tokenrt.perf.bench.roles import Share
from tokenrt.perf.demo import subject
from tokenrt.perf.profile import timing


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
        lambda found: np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(found, full, strict=True)]),
    )


def scored(value: float, draws: int = 1) -> Score:
    """Five pictures that all score the same."""
    return Score(np.full((draws, 5), value))


def test_every_method_leaves_the_same_counts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[list[int]]] = {}
    monkeypatch.setattr(
        quality,
        "_score",
        lambda exam, name, budget, options: (
            asked.setdefault(name, []).append([*budget.counts]) or np.full(3, 0.5)
        ),
    )
    for name in ("slice", "tome", "random"):
        scores = [result.score for result in quality.measure(exam(tiny), name)]
        assert [score and score.value for score in scores] == [0.5] * len(quality.SHARES)
    assert asked["slice"] == asked["tome"]
    assert len(asked["random"]) == len(quality.SEEDS) * len(quality.SHARES)
    assert asked["slice"][0] == [16, 15, 14, 13]
    assert asked["slice"][-1][-1] == 1 + 4


def test_methods_are_measured_once_more_with_tokens_leaving_late(tiny: Path) -> None:
    found = list(quality.measure(exam(tiny), "topk", LATE))
    assert [result.share for result in found] == [*quality.SHARES]
    assert all(result.where == LATE and result.score is not None for result in found)
    counts, layers = quality._counts(prepare(tiny).structure, 0.25, LATE)
    assert (counts, layers) == ([11, 5], [2, 3])


def test_a_method_that_takes_only_some_counts_is_measured_at_the_nearest(tiny: Path) -> None:
    for_all = list(quality.measure(exam(tiny), "expedit"))
    assert all(result.score is None for result in for_all)
    once = list(quality.measure(exam(tiny), "expedit", ONCE))
    # 75 % of 16 tokens are 12 = 3 x 4; 35 % are 6 = 2 x 3.
    assert [result.tokens for result in once] == [13, 9, 7, 5]
    assert all(result.score is not None for result in once)


def test_drawn_numbers_in_place_of_a_score_choose_the_same_for_every_input(
    tiny: Path, tmp_path: Path
) -> None:
    from tokenrt.passes.reduce import reduce

    kept = {}
    other = altered.drawn("topk")
    with methods.also(other):
        for name in ("topk", other.name):
            output = tmp_path / f"{name}.onnx"
            reduce(tiny, method=name, budget=Budget.tokens([5], [1]), source_map=True, output=output)
            kept[name] = quality._answers(output, exam(tiny).inputs, output="token_source_map")[:, 1:] >= 0
    own, found = kept["topk"], kept[other.name]
    assert (found.sum(axis=1) == 4).all()
    assert (found == found[:1]).all()
    assert not (own == found).all()
    with pytest.raises(MethodError, match="no method is called"):
        methods.get(other.name)


def test_drawing_needs_a_score_to_draw_for(tiny: Path) -> None:
    other = altered.drawn("tome")
    with methods.also(other), pytest.raises(TokenrtError, match="'tome' chooses by no score"):
        quality.measured(exam(tiny), other.name, 0.5, ALL)


def test_dropped_tokens_count_with_the_most_similar_one_that_stays(tiny: Path, tmp_path: Path) -> None:
    from tokenrt.passes.reduce import reduce

    maps = {}
    for name in ("divprune", "random"):
        other = altered.counted(name)
        with methods.also(other):
            for chosen in (name, other.name):
                output = tmp_path / f"{chosen}.onnx"
                planned = reduce(
                    tiny, method=chosen, budget=Budget.tokens([5], [1]), source_map=True, output=output
                ).plan
                maps[chosen] = quality._answers(output, exam(tiny).inputs, output="token_source_map")
            assert planned.proportional_attention
        own, found = maps[name], maps[other.name]
        assert (found >= 0).all()
        assert (np.broadcast_to(own, found.shape)[own >= 0] == found[own >= 0]).all()


def test_a_score_is_the_mean_over_draws_of_the_center_over_pictures() -> None:
    each = np.array([[0.0, 0.0, 0.9], [1.0, 1.0, 1.0]])
    assert Score(each, "median").value == 0.5
    assert Score(each).value == pytest.approx(0.65)


def test_the_interval_is_that_of_the_difference_on_the_same_pictures() -> None:
    pictures = np.random.default_rng(1).random(400)
    score, better = Score(pictures[None]), Score(pictures[None] + 0.01)
    np.testing.assert_allclose(better.above(score), [0.01, 0.01], atol=1e-9)
    other = Score(np.random.default_rng(2).random(400)[None])
    low, high = other.above(score)
    error = np.sqrt(2 / 12 / 400)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    drawn = Score(np.array([[0.0] * 5, [1.0] * 5]))
    assert drawn.above(scored(0.0)) == (0.0, 1.0)
    # What all pictures lose alike is sure, however far apart the pictures are.
    far = np.array([[0.1, 0.5, 0.9]])
    assert Score(far - 0.02, "median").above(Score(far, "median")) == pytest.approx((-0.02, -0.02))


def test_those_below_random_are_found_where_they_reduce() -> None:
    def result(name: str, score: Score, where: str) -> Result:
        return Result("one", name, 0.5, score, where=where)

    accident = Score(np.array([[0.95, 0.95, 0.95, 0.95, 0.1]]))
    rows = [
        result("random", scored(0.9, 3), ALL),
        result("random", scored(0.7), ONCE),
        result("a", scored(0.8), ONCE),
        result("b", scored(0.8), ALL),
        result("c", accident, ALL),
    ]
    found = Quality([("one", "", 1.0)], rows)
    assert found.beaten("one") == {"b": [0.5], "c": [0.5]}
    assert found.beaten("one", ONCE) == {}
    assert found.losses == {("one", ALL, "b", 0.5): True, ("one", ALL, "c", 0.5): False}
    page = found.page(results.circumstances())
    assert "No reason was found and tested for `b`." in page
    assert "perhaps by accident, so no reason was sought: `c`." in page


def test_an_outcome_says_whether_its_reason_holds() -> None:
    told = Experiment("one", ("a",), "it looks too early", "later", changed_where=LATE)
    trials = [
        Trial("a", 0.5, scored(0.9), scored(0.95), scored(0.94)),
        Trial("a", 0.25, scored(0.9), scored(0.92), scored(0.94)),
    ]
    (said, table) = Outcome(told, trials).page(results.table)
    assert "`a`: it looks too early. Test: later; then it is not below `random`." in said
    assert "| `a` | 50% | 0.900 | 0.950 | 0.940 | +0.010 to +0.010 | holds |" in table
    assert "| `a` | 25% | 0.900 | 0.920 | 0.940 | -0.020 to -0.020 | does not hold |" in table
    assert [trial.holds for trial in trials] == [True, False]


def test_reasons_are_tested_for_methods_that_lose_where_they_lose(tiny: Path) -> None:
    told = Experiment("tiny", ("topk", "evit"), "it looks too early", "later", changed_where=LATE)
    outcome = quality._outcome(exam(tiny), told, {"topk": [0.5, 0.35], "tome": [0.5]}, {})
    assert [(trial.method, trial.share) for trial in outcome.trials] == [("topk", 0.5), ("topk", 0.35)]
    trial = outcome.trials[0]
    assert trial.own.value == quality.measured(exam(tiny), "topk", 0.5, ALL)[0].value
    assert trial.changed.value == quality.measured(exam(tiny), "topk", 0.5, LATE)[0].value
    assert trial.random.each.shape == (len(quality.SEEDS), 3)


def test_random_can_be_changed_too(tiny: Path) -> None:
    told = Experiment("tiny", ("divprune",), "it drops", "counted", altered.counted, altered.counted)
    (trial,) = quality._outcome(exam(tiny), told, {"divprune": [0.5]}, {}).trials
    assert trial.random.each.shape == (len(quality.SEEDS), 3)
    assert trial.random.value != quality.measured(exam(tiny), "random", 0.5, ALL)[0].value


def test_what_was_scored_is_not_scored_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(quality.measure(exam(tiny), "tome"))
    given = exam(tiny)
    monkeypatch.setattr(quality, "_answers", lambda model, inputs: pytest.fail("ran again"))
    for again, result in zip(quality.measure(given, "tome"), first, strict=True):
        assert replace(again, score=None) == replace(result, score=None)
        assert again.score is not None
        assert result.score is not None
        assert (again.score.each == result.score.each).all()


def test_methods_are_scored_and_refusals_kept(tiny: Path) -> None:
    found = list(quality.measure(exam(tiny), "tome"))
    values = [result.score.value for result in found if result.score is not None]
    assert len(values) == len(quality.SHARES)
    assert 0 < values[-1] < values[0] <= 1
    structure = prepare(tiny).structure
    assert (structure.tokens, structure.protect) == (17, 1)


def test_the_page_tells_who_loses_to_random_and_what_was_tried() -> None:
    scores = {"tome": 0.99, "topk": 0.90, "random": 0.95, "slice": 0.80}
    rows = [
        Result("one", name, share, scored(score))
        for name, score in scores.items()
        for share in quality.SHARES
    ]
    rows += [
        Result("one", name, share, None, "needs a grid")
        for name in ("tomesd", "expedit")
        for share in quality.SHARES
    ]
    rows += [Result("one", name, 0.25, scored(0.9), where=ONCE, tokens=17) for name in ("expedit", "random")]
    told = Experiment("one", ("topk",), "it looks too early", "later", changed_where=LATE)
    outcome = Outcome(told, [Trial("topk", 0.25, scored(0.9), scored(0.97), scored(0.96))])
    page = Quality([("one", "Accuracy.", 0.995)], rows, [outcome]).page(results.circumstances())
    assert "| `topk` | 25% | 0.900 | 0.970 | 0.960 | +0.010 to +0.010 | holds |" in page
    assert "| `topk` | 0.900 ↓ | 0.900 ↓ | 0.900 ↓ | 0.900 ↓ |" in page
    assert "Below `random` at some share (all blocks): `topk`." in page
    assert "No reason was found" not in page
    untold = Quality([("one", "Accuracy.", 0.995)], rows).page(results.circumstances())
    assert "No reason was found and tested for `topk`." in untold
    assert "- `tomesd`: needs a grid" in page
    assert "- `expedit`" not in page
    assert "| `expedit` | 0.900 (17) |" in page
    assert "| `tome` | 0.990 | 0.990 | 0.990 | 0.990 |" in page


def test_there_are_twenty_pictures() -> None:
    names = [picture.name for picture in subject.pictures()]
    assert len(set(names)) == len(names) >= 20
    assert next(subject.pictures()).pixels().shape == (3, subject.SIDE, subject.SIDE)


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


def test_the_page_lists_what_costs_more_and_what_on() -> None:
    spent = [
        Share("the model itself", 90.0, 12, {"MatMul": 90.0}),
        Share("matching", 10.0, 3, {"TopK": 10.0}),
    ]
    costs = [
        Cost("a", "merging", "--remove 13", 0.02, 1.04),
        Cost("ltmp", "merging", "--remove 13", 0.07, 1.14, roles=spent),
        Cost("c", "merging", "", None, reason="no grid"),
    ]
    page = MethodCosts(costs, 2).page(results.circumstances())
    assert "Above 5%: `ltmp`.\n\n## What those above it spend" in page
    assert f"`ltmp`: {bench_methods.WHY['ltmp']}.\n\n| role |" in page
    assert "| matching | 3 | 10.00 | 10.0% | TopK 10.00 |" in page
    assert "| `a` | merging | `--remove 13` | 2.0% | 1.040 |" in page


def test_methods_above_the_limit_are_profiled_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_methods, "exported", lambda source: tiny)
    monkeypatch.setattr(bench_methods, "_ratios", lambda models, threads: (2.0, 1.2))
    monkeypatch.setitem(bench_methods.BUDGETS, "merging", ("--remove 2", Budget.remove(2)))
    (first,) = bench_methods.run(["tome"]).costs
    assert {"matching", "merging"} <= {share.role for share in first.roles}
    (second,) = bench_methods.run(["tome"]).costs
    assert second.as_dict() == first.as_dict()


def test_every_one_shot_method_that_may_be_above_the_limit_is_there() -> None:
    assert set(bench_methods.WHY) <= set(methods.names())


def test_the_floor_has_the_counts_of_the_method(tiny: Path, tmp_path: Path) -> None:
    from tokenrt.passes.planning.plan import Plan
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
