"""What a benchmark found is there when it goes on; a line cut short is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenrt.perf.bench.journal import Journal, digest


def test_answers_are_kept_and_the_last_one_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.get("a") is None
    assert journal.put("a", 0.5) == 0.5
    journal.put("a", 0.75)
    journal.put("b", "yes")
    assert Journal(journal.path).get("a") == 0.75


def test_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.put("a", 1)
    with journal.path.open("a") as file:
        file.write('{"key": "b", "ans')
    assert journal.get("b") is None
    assert journal.get("a") == 1


def test_journals_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    assert Journal.of("scores").path == tmp_path / "bench" / "scores.jsonl"


def test_a_key_depends_on_the_weights_beside_a_model(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    first = digest(model, "x")
    assert digest(model, "y") != first
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    assert digest(model, "x") != first
