"""How well kept tokens stand for all: the measures against plain loops, what a reduction adds to a tower, and the page."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from tests.passes.helpers.projectors import tower
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.quality import kept
from tokenrt.perf.bench.quality.kept_measures import MEASURES, SHOWN, Kept, Reason
from tokenrt.perf.bench.quality.kept_page import KeptTokens
from tokenrt.perf.bench.quality.tower import FEATURES, Tower
from tokenrt.perf.profile import timing

RANDOM = np.random.default_rng(0)
FULL = RANDOM.standard_normal((3, 16, 5)) + 1
ATTENDED = RANDOM.dirichlet(np.ones(16), 3)


def maps(features: np.ndarray) -> np.ndarray:
    """A head of its own for tests: the first channel, each token a square of 2 x 2 pixels."""
    return np.kron(features[:, :, 0].reshape(-1, 4, 4), np.ones((1, 2, 2))).reshape(len(features), -1)


def test_all_rows_stand_for_themselves() -> None:
    found = kept.measures(FULL, FULL, None, ATTENDED, maps, maps(FULL))
    assert set(found) == set(MEASURES)
    for key in ("mean", "nearest", "mean_counted", "nearest_attended"):
        assert np.abs(found[key]).max() < 1e-6
    assert np.allclose([found["map"], found["map_nearest"]], 1)


def test_measures_are_those_of_plain_loops() -> None:
    rows = FULL[:, [1, 7, 8]]
    found = kept.measures(FULL, rows, None, ATTENDED, maps, maps(FULL))
    for at, (full, few, weights) in enumerate(zip(FULL, rows, ATTENDED, strict=True)):
        apart = np.linalg.norm(full[:, None] - few[None], axis=2)
        near, mean = apart.argmin(1), full.mean(0)
        lengths = np.square(full).sum(1)
        assert found["mean"][at] == pytest.approx(np.linalg.norm(few.mean(0) - mean) / np.linalg.norm(mean))
        assert found["nearest"][at] == pytest.approx(np.sqrt((apart.min(1) ** 2).sum() / lengths.sum()))
        assert found["nearest_attended"][at] == pytest.approx(
            np.sqrt((weights * apart.min(1) ** 2).sum() / (weights * lengths).sum())
        )
        counted = np.linalg.norm(few[near].mean(0) - mean) / np.linalg.norm(mean)
        assert found["mean_counted"][at] == pytest.approx(counted)
        distances = np.linalg.norm(few - mean, axis=1) / np.linalg.norm(mean)
        assert found["apart"][at] == pytest.approx(distances.mean())
        assert found["map"][at] == pytest.approx(np.corrcoef(few[near, 0], full[:, 0])[0, 1])
        unit = few / np.linalg.norm(few, axis=1, keepdims=True)
        pairs = [(0, 1), (0, 2), (1, 2)]
        cosine = {pair: float(unit[pair[0]] @ unit[pair[1]]) for pair in pairs}
        most = [max(value for pair, value in cosine.items() if row in pair) for row in range(3)]
        assert found["alike"][at] == pytest.approx(np.mean(most))


def test_a_token_comes_back_as_what_it_was_joined_to() -> None:
    rows = FULL[:, [1, 7, 8]]
    joined = np.tile(np.arange(16) % 3, (3, 1))
    joined[:, 5] = -1
    found = kept.measures(FULL, rows, joined, ATTENDED, maps, maps(FULL))
    for at, (full, few) in enumerate(zip(FULL, rows, strict=True)):
        back = joined[at].copy()
        back[5] = np.linalg.norm(few - full[5], axis=1).argmin()
        near = np.linalg.norm(few[:, None] - full[None], axis=2).argmin(0)
        assert found["map"][at] == pytest.approx(np.corrcoef(few[back, 0], full[:, 0])[0, 1])
        assert found["map_nearest"][at] == pytest.approx(np.corrcoef(few[near, 0], full[:, 0])[0, 1])
        off = few[back].mean(0) - full.mean(0)
        assert found["mean_counted"][at] == pytest.approx(np.linalg.norm(off) / np.linalg.norm(full.mean(0)))


@pytest.fixture(scope="module")
def small() -> Tower:
    """A tower of 36 tokens without a head."""
    model = prepare(tower("mlp")).model
    model.graph.outputs[0].name = FEATURES
    return Tower(model, RANDOM.standard_normal((5, 3, 24, 24)).astype(np.float32))


@pytest.mark.parametrize("name", ["divprune", "fastervlm", "dpcknn"])
def test_what_is_added_does_what_the_reduced_tower_does(small: Tower, name: str) -> None:
    reduced = reduce(small.model, method=name, site="output", budget=Budget.tokens([7])).model
    added = small.added(reduced)
    assert len(added.graph) < len(reduced.graph) - len(small.whole.graph) / 2
    found, opened = small.run(added), timing.session(reduced)
    wanted = opened.run(None, {opened.get_inputs()[0].name: small.pictures})
    for each, output in zip(opened.get_outputs(), wanted, strict=True):
        assert np.allclose(found[each.name], output, atol=1e-5), each.name


def test_the_attention_of_the_class_token_is_shared_out(small: Tower) -> None:
    assert small.attended.shape == (5, 36)
    assert np.allclose(small.attended.sum(1), 1)


def test_who_is_left_out_is_told_why() -> None:
    asked = ("tome", "evs", "cdpruner", "idpruner", "focusllava", "divprune")
    told = {name: kept.unfit(name) for name in asked}
    assert told["divprune"] == ""
    assert told["tome"] == "leaves 128 of 256 at the least"
    for name, word in {
        "evs": "frames",
        "cdpruner": "words",
        "idpruner": "importance",
        "focusllava": "weights",
    }.items():
        assert word in told[name]


def test_the_page_says_who_is_surely_worse_and_why() -> None:
    def each(offset: float, draws: int = 1) -> dict[str, np.ndarray]:
        noise = np.linspace(0, 0.01, 8)
        level = {key: 0.5 - offset if MEASURES[key].more else 0.5 + offset for key in MEASURES}
        level["nearest_attended"] = 0.5
        return {key: np.stack([value + noise] * draws) for key, value in level.items()}

    found = KeptTokens(
        8,
        256,
        [
            *(Kept("topk", share, None, {}, "no") for share in (0.25, 0.05)),
            Kept("topk", 0.11, 28, each(0.2)),
            Kept("divprune", 0.11, 25, each(-0.2)),
            Kept("random", 0.11, 28, each(0, 2)),
            Kept("evit", 0.11, 28, each(0.1)),
            Kept("fastervlm", 0.11, 28, each(0.1)),
            Kept("m3", 0.11, None, {}, "it cannot"),
        ],
        {28: each(0, 2), 25: each(0, 2)},
        {"evs": "for clips", "sta": "for clips"},
        [
            Reason(("topk",), ("nearest",), "it looks elsewhere", "where it looks", "nearest_attended"),
            Reason(("topk",), ("map",), "it repeats itself", "so it does", "alike", there=True),
            Reason(("topk",), ("mean",), "no reason", "not at all", "mean_counted"),
        ],
    )
    same = {"evit": [0.11], "fastervlm": [0.11]}
    assert all(found.losers(key) == {"topk": [0.11], **same} for key in SHOWN)
    page = found.page(results.circumstances())
    assert "| `topk` | - | 0.705 ↓ | - |" in page
    assert "| `divprune` | - | 0.305 (25) ↑ | - |" in page
    assert "| `random` | - | 0.505 | - |" in page
    assert "at every share" not in page
    assert "`topk`: it looks elsewhere. Test: where it looks." in page
    assert "| `topk` | - | 0.505 (0.505) | - |" in page
    assert "`topk`: it repeats itself. Test: so it does." in page
    assert "| `topk` | - | 0.705 (0.505) | - |" in page
    assert "| `topk` | - | 0.705 (0.505) ✗ | - |" in page
    assert page.count("No reason was found and tested for `evit`, `fastervlm`.") == 3
    assert "Choosing the same tokens here: `evit`, `fastervlm`." in page
    assert "- `evs`, `sta`: for clips\n- `topk` at 25%, 5%: no\n- `m3` at 11%: it cannot" in page
    shown = io.StringIO()
    Console(file=shown, width=140).print(found)
    assert "0.305 (25) ↑" in shown.getvalue()
    assert json.loads(json.dumps(found.as_dict()))["reasons"][0]["holds"]
    assert [each["holds"] for each in found.as_dict()["reasons"]] == [True, True, False]
