"""Reports of runs: every number is the run's or measured here, what is missing says why, and bad input is one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tokenrt
from tests.perf.report.conftest import GRID, Made, quick
from tokenrt.cli import app
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.report import look, samples
from tokenrt.perf.report.document import SECTIONS


def report(*words: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def tokens(view: list[dict[str, Any]], block: int) -> np.ndarray[Any, Any]:
    """The token of each cell behind a block, -1 where it was dropped."""
    found = np.arange(GRID * GRID)
    for change in view:
        if change["block"] <= block:
            found[change["cells"]] = change["tokens"]
    return found


def test_the_plans_are_those_of_the_run(made: Made) -> None:
    run = json.loads((made.run / "run.json").read_text())
    assert len(made.document["entries"]) == len(run["plans"])
    for entry, plan in zip(made.document["entries"], run["plans"], strict=True):
        assert entry["spec"] == plan["spec"]
        assert entry["harm"] == pytest.approx(plan["harm"], rel=1e-5)
        assert entry["interval"] == pytest.approx(plan["interval"], rel=1e-5)
        assert (entry["cost"], entry["front"]) == (pytest.approx(plan["ratio"], rel=1e-5), plan["front"])
    best = made.document["entries"][run["recommended"]]
    assert best["recommended"]
    assert made.document["shown"] == run["recommended"]
    assert made.document["verdict"] == run["verdict"]


def test_every_plan_tells_where_the_patches_of_every_picture_went(made: Made) -> None:
    for entry in made.document["entries"]:
        assert len(entry["views"]) == len(made.document["samples"]) == 3
        for view in entry["views"]:
            for step in entry["flow"]:
                left = tokens(view, step["block"])
                assert len(np.unique(left[left >= 0])) == step["leaving"] - 1  # the class token is no patch
                assert (left < 0).any() == (step["method"] == "topk")


def test_the_patches_that_go_are_those_that_the_model_drops(made: Made) -> None:
    """Compared with the map of the last site, as `reduce --source-map` gives it."""
    import onnxruntime

    from tokenrt.passes.checking.inputs import Input
    from tokenrt.passes.checking.pictures import picture

    place = made.document["shown"]
    plan = Plan.load(made.run / "best.toml")
    mapped = made.run.parent / "mapped.onnx"
    tokenrt.reduce(made.model, plan=plan, source_map=True, output=mapped)
    session = onnxruntime.InferenceSession(str(mapped), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    item = Input(given.name, np.dtype(np.float32), (None, 3, 80, 80))
    for view, path in zip(made.document["entries"][place]["views"], sorted(made.data.iterdir()), strict=True):
        (where,) = session.run(["token_source_map"], {given.name: picture(item, path)[None]})
        np.testing.assert_array_equal(tokens(view, 99), look.first(where[0, 1:]))


def test_what_was_measured_is_there(made: Made) -> None:
    best = made.document["entries"][made.document["shown"]]
    assert best["time"]["evidence"] == "measured"
    assert 0 < best["time"]["low"] <= best["time"]["ratio"] <= best["time"]["high"]
    assert {f"block {number}" for number in range(4)} <= {part["name"] for part in best["time"]["parts"]}
    assert best["work"]["macs"] < made.document["unreduced"]["macs"]
    assert best["check"]["ok"]
    assert not made.document["missing"]
    assert made.document["measures"]["evidence"] == "counted"
    assert "KL divergence" in made.document["measures"]["harm"]
    assert all(sample["picture"].startswith("data:image/jpeg;base64,") for sample in made.document["samples"])
    (again, *_) = made.document["commands"]
    assert f"--data '{made.data}'" in again["line"] or f"--data {made.data} " in again["line"]
    assert "--flops 0.75 --methods tome,topk" in again["line"]
    page = made.page.read_text(encoding="utf-8")
    assert len(page) < 5e6
    assert all(f'<section id="{name}"' in page for name in SECTIONS)


def test_arrays_have_no_pictures_and_an_unmet_wish_shows_the_nearest(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    arrays = np.random.default_rng(0).standard_normal((3, 3, 80, 80), np.float32)
    np.savez(tmp_path / "data.npz", allow_pickle=False, pixels=arrays)
    words = {"flops": 0.01, "methods": ["topk"], "threads": 1}
    found = tokenrt.tune(made.model, data=tmp_path / "data.npz", output=tmp_path / "run", **words)  # type: ignore[arg-type]
    assert not found.ok
    done = report(tmp_path / "run", "-o", tmp_path / "r.html", "--json")
    assert done.exit_code == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert "holds arrays" in told["missing"]["samples"]
    assert told["state"] in ("not met", "nothing helps")
    assert not any(entry["recommended"] for entry in told["entries"])
    assert [each["line"].split()[1] for each in told["commands"]] == ["tune", "report"]
    assert "holds arrays" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_data_that_moved_is_named_and_other_data_is_refused(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    told["asked"]["data"] = "gone"
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    done = report(tmp_path / "run", "-o", tmp_path / "r.html")
    assert done.exit_code == 2
    assert "say where it is with --data" in done.stderr
    shutil.copytree(made.data, tmp_path / "other")
    (tmp_path / "other" / "photo 0 <b>.png").unlink()
    done = report(tmp_path / "run", "-o", tmp_path / "r.html", "--data", tmp_path / "other")
    assert done.exit_code == 2
    assert "are not what the run saw" in done.stderr
    assert not (tmp_path / "r.html").exists()


def edited(made: Made, folder: Path, change: Any) -> Path:
    folder.mkdir()
    told = json.loads((made.run / "run.json").read_text())
    change(told)
    (folder / "run.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told.pop("asked"), "lacks asked"),
        (lambda told: told["plans"][0].update(spec="reduce{}"), "reads as"),
        (lambda told: told["plans"][0]["plan"].update(tomorrow=1), "tomorrow"),
        (lambda told: told["plans"][0].pop("images"), "images"),
    ],
)
def test_a_run_of_another_version_is_refused(change: Any, why: str, made: Made, tmp_path: Path) -> None:
    done = report(edited(made, tmp_path / "run", change), "-o", tmp_path / "r.html")
    assert done.exit_code == 2
    assert "another version of tokenrt" in done.stderr
    assert why in done.stderr
    assert not (tmp_path / "r.html").exists()


def test_bad_input_is_one_message(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, why in (
        ([tmp_path / "nowhere", "-o", tmp_path / "r.html"], "is no folder"),
        ([tmp_path / "empty", "-o", tmp_path / "r.html"], "holds no run.json"),
        ([made.run, "-o", tmp_path / "no" / "r.html"], "name a file in a folder that is there"),
        ([made.run, "-o", made.model], "ends in .html"),
    ):
        done = report(*words)
        assert done.exit_code == 2, done.stdout + done.stderr
        assert why in " ".join(done.stderr.split())
    (tmp_path / "empty" / "report.json").write_text('{"version": 99}')
    assert "form 99" in report(tmp_path / "empty", "-o", tmp_path / "r.html").stderr
    assert not (tmp_path / "r.html").exists()


def test_a_document_that_lies_in_a_folder_is_shown_again(made: Made, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(made.document))
    done = report(tmp_path, "-o", tmp_path / "again.html")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "again.html").read_bytes() == made.page.read_bytes()


def test_texts_are_shown_as_their_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "the", "cat", "sat"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "texts.txt").write_text("the cat sat\n\nthe dog\n", encoding="utf-8")
    found = samples.of(tmp_path / "texts.txt", 2, [1, 2, 3], 4)
    assert [sample.words for sample in found] == [("cat", "sat", "[PAD]"), ("[UNK]", "[PAD]", "[PAD]")]
