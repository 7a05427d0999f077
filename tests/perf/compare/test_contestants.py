"""What names on the command line stand for: files, plans, folders, runs of a search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenrt.errors import TokenrtError
from tokenrt.perf.compare.contestants import _names, places


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def named(*given: Path, original: Path = Path("m.onnx")) -> list[tuple[str, str]]:
    found = places(given, original)
    return [(name, place.file.name) for name, place in zip(_names(found), found, strict=True)]


def test_files_go_by_their_names(tmp_path: Path) -> None:
    touched(tmp_path, "a.onnx", "b.toml")
    assert named(tmp_path / "a.onnx", tmp_path / "b.toml") == [("a", "a.onnx"), ("b", "b.toml")]


def test_names_are_as_long_as_tells_them_apart(tmp_path: Path) -> None:
    touched(tmp_path, "x/r.onnx", "y/r.onnx", "y/q.onnx")
    found = named(*(tmp_path / name for name in ("x/r.onnx", "y/r.onnx", "y/q.onnx")))
    assert [name for name, _ in found] == ["x/r", "y/r", "y/q"]
    touched(tmp_path, "r.onnx", "r.toml")
    ends = [name for name, _ in named(tmp_path / "r.onnx", tmp_path / "r.toml")]
    assert ends == [str(tmp_path / "r.onnx"), str(tmp_path / "r.toml")]


def test_a_folder_is_its_models_and_the_plans_of_no_model_in_order_without_the_original(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "m.onnx", "r10.onnx", "r9.onnx", "r9.toml", "p.toml", "notes.txt")
    found = named(tmp_path, original=tmp_path / "m.onnx")
    assert found == [("p", "p.toml"), ("r9", "r9.onnx"), ("r10", "r10.onnx")]


def test_a_run_is_the_model_that_it_recommends(tmp_path: Path) -> None:
    touched(tmp_path, "run/run.json", "run/reduced.onnx", "run/best.toml", "run/plans/3.toml")
    assert named(tmp_path / "run") == [("run", "reduced.onnx")]
    (tmp_path / "run" / "reduced.onnx").unlink()
    assert named(tmp_path / "run") == [("run", "best.toml")]


def test_a_run_without_one_says_so_with_its_verdict(tmp_path: Path) -> None:
    touched(tmp_path, "run/plans/0.toml")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"verdict": "Change nothing."}))
    with pytest.raises(
        TokenrtError, match=r"recommends no plan. It says: Change nothing. Its plans are in .*plans"
    ):
        named(tmp_path / "run")


def test_plans_of_a_run_go_by_what_they_are(tmp_path: Path) -> None:
    touched(tmp_path, "run/plans/0.toml", "run/plans/10.toml", "run/plans/2.toml")
    tried = [{"origin": f"tome, rule {number}"} for number in range(11)]
    (tmp_path / "run" / "run.json").write_text(json.dumps({"plans": tried}))
    assert named(tmp_path / "run" / "plans") == [
        ("0: tome, rule 0", "0.toml"),
        ("2: tome, rule 2", "2.toml"),
        ("10: tome, rule 10", "10.toml"),
    ]


def test_an_empty_folder_holds_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(TokenrtError, match="holds no model"):
        named(tmp_path)


def test_links_to_one_file_are_one_model(tmp_path: Path) -> None:
    touched(tmp_path, "a.onnx")
    (tmp_path / "b.onnx").symlink_to(tmp_path / "a.onnx")
    with pytest.raises(TokenrtError, match=r"comes twice"):
        named(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_a_run_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    touched(tmp_path, "run/plans/0.toml", "run/run.json")
    with pytest.raises(TokenrtError, match=r"cannot read .*run.json"):
        named(tmp_path / "run" / "plans")
