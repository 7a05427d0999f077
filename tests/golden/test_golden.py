"""The recorded vectors: the committed ones always, the full set where it lies beside the project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import runner

MAY_NOT_BE_COMMITTED = {
    "tome",
    "tr_tome",
    "pitome",
    "diffrate",
    "ltmp",
    "dtem",
    "mustdrop",
    "vflowopt",
    "prunevid",
    "divprune",
    "pomt",
    "zoo_prune",
    "geoprune",
    "cosine_vllm",
    "fastv",
    "tokenpacker",
    "locret",
    "tokenbutler",
}
"""Releases without a licence, or with one for non-commercial use."""

LISTED = json.loads((runner.COMMITTED / "manifest.json").read_text())["methods"]
FEW = {name: LISTED[name] for name in ("tr_topk", "evit", "atc")}
"""Methods whose vectors are spoilt, which no other need stand beside."""
CASES = sum(len(entry["cases"]) for entry in FEW.values())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The vectors of a few methods, in a folder of their own."""
    root = tmp_path / "golden"
    for name in FEW:
        shutil.copytree(runner.COMMITTED / name, root / name)
    (root / "manifest.json").write_text(json.dumps({"methods": FEW}))
    monkeypatch.setenv("TOKENRT_GOLDEN", str(root))
    return root


def test_the_committed_vectors_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENRT_GOLDEN", str(runner.COMMITTED))
    assert runner.main() == 0
    cases = sum(len(entry["cases"]) for entry in LISTED.values())
    assert capsys.readouterr().out.splitlines()[-1] == f"{cases} passed, 0 failed, 0 unsupported"


def test_only_vectors_whose_licence_allows_it_are_committed() -> None:
    listed = json.loads((runner.COMMITTED / "manifest.json").read_text())["methods"]
    assert not set(listed) & MAY_NOT_BE_COMMITTED
    assert set(listed) <= set(runner.CHECKS)
    files = {case["file"] for entry in listed.values() for case in entry["cases"].values()}
    assert files == {str(path.relative_to(runner.COMMITTED)) for path in runner.COMMITTED.rglob("*.npz")}


@pytest.mark.skipif(
    runner.folder() == runner.COMMITTED, reason="the full set of recorded vectors is not here"
)
def test_the_full_set_passes() -> None:
    outcomes = [outcome for outcome in runner.run(runner.folder()) if outcome.method in runner.CHECKS]
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= len(runner.CHECKS)


@pytest.mark.parametrize(
    ("array", "message"), [("y", "tokens differs"), ("keep_idx", "positions kept differs")]
)
def test_a_difference_is_found_and_named(
    copy: Path, array: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "tr_topk" / "n17_k05.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays[array] = arrays[array].copy()
    arrays[array][0, 3] += 1
    np.savez(path, **arrays)
    assert runner.main() == 1
    printed = capsys.readouterr().out
    assert "tr_topk                  0 passed, 1 failed, 0 unsupported" in printed
    assert message in printed
    assert printed.splitlines()[-1] == f"{CASES - 1} passed, 1 failed, 0 unsupported"


def test_vectors_of_an_architecture_are_counted_apart(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["methods"]["tokenpacker"] = {"cases": {"one": {"file": "tokenpacker/one.npz", "params": {}}}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert runner.main() == 0
    said = capsys.readouterr().out
    assert "one: no rewrite of a graph: an architecture trained so" in said
    assert said.splitlines()[-1] == f"{CASES} passed, 0 failed, 0 unsupported, 1 no rewrite of a graph"


def test_methods_of_later_versions_are_counted_as_unsupported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["methods"]["newer"] = {"cases": {"one": {"file": "newer/one.npz", "params": {}}}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert runner.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{CASES} passed, 0 failed, 1 unsupported"


def test_a_broken_or_missing_file_is_a_failed_case(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "evit" / "fuse_n17_k07.npz").unlink()
    assert runner.main() == 1
    assert "FileNotFoundError" in capsys.readouterr().out


def test_a_case_that_cannot_be_compared_ends_no_others(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    next(iter(manifest["methods"]["atc"]["cases"].values()))["params"]["out_tokens"] = "many"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert runner.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{CASES - 1} passed, 1 failed, 0 unsupported"


def test_manifests_that_list_their_methods_are_read_like_those_that_map_them(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = json.loads((copy / "manifest.json").read_text())["methods"]
    (copy / "manifest.json").unlink()
    listed = [
        {
            "method": method,
            "cases": [
                {"case": name, "path": case["file"], "params": case["params"]}
                for name, case in entry["cases"].items()
            ],
        }
        for method, entry in methods.items()
    ]
    (copy / "manifest_other.json").write_text(json.dumps({"methods": listed}))
    assert runner.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{CASES} passed, 0 failed, 0 unsupported"


def test_a_folder_without_vectors_is_exit_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENRT_GOLDEN", str(tmp_path))
    assert runner.main() == 2
    assert "holds no manifest.json" in capsys.readouterr().err
