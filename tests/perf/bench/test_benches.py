from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import tokenrt
from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import (
    __main__,
    agreement,
    coverage,
    flops,
    half,
    large,
    models,
    results,
    roles,
)
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.demo import subject
from tokenrt.perf.profile import timing

TINY = PlainViT(width=32, heads=2, blocks=2, patch=16, image=64, classes=5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.write(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


def test_a_plain_vit_is_a_model_with_its_weights_beside_it(tiny: Path) -> None:
    onnx.checker.check_model(str(tiny), full_check=True)
    weights = tiny.with_name("tiny.onnx.data")
    assert models.bytes_of(tiny) == tiny.stat().st_size + weights.stat().st_size
    opened = timing.session(tiny, threads=1)
    found = opened.run(None, timing.feeds(opened, 2))[0]
    assert found.shape == (2, 5)
    assert 0.1 < found.std() < 10


def test_a_plain_vit_without_a_seed_takes_no_room(tiny: Path, tmp_path: Path) -> None:
    hollow = TINY.write(tmp_path / "hollow.onnx", seed=None)
    same = [tiny.with_name("tiny.onnx.data"), tmp_path / "hollow.onnx.data"]
    assert len({path.stat().st_size for path in same}) == 1
    assert not np.frombuffer(same[1].read_bytes(), np.float32).any()
    counts = tokenrt.plan(hollow, method="tome", budget=Budget.remove(2)).counts()
    assert counts == [17, 15, 13]


SMALL = [told for told in flops.PUBLISHED if told.model.startswith(("DeiT-Ti", "DeiT-S"))][:6]


@pytest.mark.parametrize(
    "published", [SMALL, pytest.param(flops.PUBLISHED, marks=pytest.mark.slow)], ids=["small", "all"]
)
def test_counts_are_those_of_the_papers(published: list[flops.Published]) -> None:
    report = flops.run(published)
    assert [row.published for row in report.rows if not row.within] == []
    assert "rounding of the published number: none." in report.page(results.circumstances())


def test_a_count_that_is_off_is_told() -> None:
    wrong = replace(flops.PUBLISHED[4], giga="4.8")
    report = flops.run([wrong])
    assert not report.rows[0].within
    assert "DeiT-S/16 unreduced" in report.page(results.circumstances())


def test_reducing_is_measured_in_a_process_of_its_own(tiny: Path) -> None:
    found = large.measure("tiny", tiny, removed=2)
    assert found.tokens == (17, 13)
    assert found.ran == (1, 5)
    assert min(found.seconds, found.peak, found.macs) > 0
    json.dumps(large.LargeReport((found,)).as_dict())


def test_a_failed_measurement_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(TokenrtError, match=r"a measurement failed: .*no such model file"):
        large.measure("none", tmp_path / "none.onnx")


def test_the_time_of_a_run_is_shared_out_by_role(tiny: Path) -> None:
    reduced = tokenrt.reduce(tiny, method="tome", budget=Budget.remove(2))
    shares = roles.breakdown(reduced.model, 1, 1, 2)
    found = {share.role: share for share in shares}
    assert {"matching", "merging", roles.MODEL, "log size added to attention"} <= set(found)
    assert "MatMul" in found[roles.MODEL].operators
    assert [roles.Share.from_dict(share.as_dict()).as_dict() for share in shares] == [
        share.as_dict() for share in shares
    ]


def test_what_runs_inside_a_loop_counts_once_and_as_the_loop(tiny: Path) -> None:
    reduced = tokenrt.reduce(tiny, method="atc", budget=Budget.remove(2))
    shares = {share.role: share for share in roles.breakdown(reduced.model, 1, 1, 2)}
    assert "Loop" in shares["clustering"].operators
    assert not {"Loop", "GlobalMaxPool", "ScatterElements"} & set(shares[roles.MODEL].operators)


def test_an_attention_repeated_for_a_score_counts_as_the_models_own(tiny: Path) -> None:
    reduced = tokenrt.reduce(tiny, method="zerotprune", budget=Budget.remove(2))
    shares = {share.role: share for share in roles.breakdown(reduced.model, 1, 1, 2)}
    assert "Softmax" in shares[roles.MODEL].operators
    assert all("Softmax" not in share.operators for role, share in shares.items() if role != roles.MODEL)


def test_results_are_written_as_json_and_as_a_page(tmp_path: Path) -> None:
    where = results.circumstances()
    page = f"# Title\n\n{results.table(['a', 'b:'], [['1', '2']])}\n\n{results.told(where)}"
    data, text = results.write(tmp_path / "results", "name", {**where, "x": 1}, page)
    assert json.loads(data.read_text())["x"] == 1
    assert "| a | b |\n| --- | ---: |\n| 1 | 2 |" in text.read_text()
    assert tokenrt.__version__ in text.read_text()


def test_an_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["speed"])
    assert (
        "there are demo, tome, greedy, agreement, engine_layers, half, large, flops, costs, latency, quality, kept, text, speech"
        in capsys.readouterr().err
    )


def test_a_benchmark_that_cannot_run_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail() -> None:
        raise TokenrtError("no model")

    monkeypatch.setitem(__main__.BENCHES, "tome", ("tome_cost", fail))
    assert __main__.main(["tome", "--out", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err == "error: no model\n"
    assert not (tmp_path / "results").exists()


def test_models_are_kept_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TOKENRT_CACHE", raising=False)
    assert models.cache() == tmp_path / "xdg" / "tokenrt"
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "own"))
    assert models.cache() == tmp_path / "own"


def test_an_export_that_fails_is_one_message_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    with pytest.raises(TokenrtError, match="cannot export nowhere:model"):
        models.exported("nowhere:model")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_rows_of_the_coverage_page_can_be_made_alone(tmp_path: Path) -> None:
    data = tmp_path / "coverage.json"
    old = [coverage.Cell(name, "fp16", "refused", "once") for name in ("vit", "swin", "gone", "bert")]
    data.write_text(json.dumps({"cells": [vars(cell) for cell in old]}))
    made = [coverage.Cell("swin", "fp16", "reduced"), coverage.Cell("new", "fp16", "reduced")]
    found = coverage.beside(made, data, ("vit", "swin", "new", "bert"))
    assert [cell.model for cell in found] == ["vit", "swin", "new", "bert"]
    assert [cell.status for cell in found] == ["refused", "reduced", "reduced", "refused"]
    assert coverage.beside(made, tmp_path / "none.json", ("swin", "new")) == made


def test_the_coverage_page_numbers_its_reasons_once() -> None:
    cells = [
        coverage.Cell("vit", "dynamo 18", "reduced"),
        coverage.Cell("vit", "fp16", "reduced"),
        coverage.Cell("swin", "dynamo 18", "refused", "node 'a' is in the way"),
        coverage.Cell("swin", "fp16", "refused", "node 'b' is in the way"),
    ]
    page = coverage.page(cells, results.circumstances())
    assert "| `vit` | yes | yes |\n| `swin` | refused (1) | refused (1) |" in page
    assert "1. refused: node 'a' is in the way" in page
    assert "2. " not in page


def test_how_well_two_profiles_agree_is_told(tiny: Path) -> None:
    pair = agreement.Subject("tiny", tiny, "tome", Budget.remove(2), "tome --remove 2")
    report = agreement.run([pair], runs=2, rounds=3)
    (found,) = report.found
    assert len(found.ratios) == 2
    assert found.spread == max(found.ratios) / min(found.ratios) - 1
    assert found.covered > 0.8  # On a machine that does other things too.
    page = report.page(results.circumstances())
    assert f"| {found.spread:.1%} | {found.covered:.1%} |" in page


def test_what_half_changes_is_told_with_the_choices(tmp_path: Path) -> None:
    if subject.version(subject.PICTURES) is None:
        pytest.skip("scikit-image, which carries the photographs, is not installed")
    form = PlainViT(width=32, heads=2, blocks=2, patch=16, image=224, classes=5)
    budgets = [("topk", Budget.keep(0.5, [0]), "--keep 0.5 --layers 0")]
    report = half.run({"small": form.write(tmp_path / "m.onnx")}, budgets)
    (row,) = report.rows
    assert row.report.choices is not None
    assert row.report.choices.samples == len(subject.PHOTOGRAPHS)
    assert row.cosine > 0.99
    assert row.alike is None or row.alike >= row.cosine
    assert f"| small | `topk --keep 0.5 --layers 0` | {row.cosine:.5f} |" in report.page(
        results.circumstances()
    )
