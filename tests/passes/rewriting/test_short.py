"""Outputs that stay short in a model of several transformers: one index tells of one choice."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.compose
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tokenrt import Budget


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two transformers side by side, each with an output of a row for each token."""
    made = tiny.model(tiny.EVERY, output="float[B,6,8] y")
    first, second = (onnx.compose.add_prefix(made, f"{name}_") for name in ("first", "second"))
    for field in ("node", "initializer", "input", "output"):
        getattr(first.graph, field).extend(getattr(second.graph, field))
    target = tmp_path_factory.mktemp("two") / "two.onnx"
    onnx.save(first, target)
    return target


@pytest.mark.parametrize(("number", "name"), [(0, "first_y"), (1, "second_y")])
def test_whichever_it_is_its_index_is_told_and_checked(
    path: Path, tmp_path: Path, number: int, name: str
) -> None:
    target = tmp_path / "r.onnx"
    tokenrt.reduce(
        path,
        method="divprune",
        budget=Budget.remove(1, [0]),
        transformers=[number],
        short=name,
        output=target,
    )
    assert json.loads((tmp_path / "r.onnx.json").read_text())["index"] == "kept_index"
    done = tokenrt.check(path, target, samples=1)
    assert done.ok, done.reasons
    assert max(drift.relative_l2 or 0 for drift in done.outputs if drift.output != name) < 1e-6


def test_two_choices_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        tokenrt.UnsupportedError, match=r"'kept_index' tells of another choice .* named with --short"
    ):
        tokenrt.reduce(
            path,
            method="divprune",
            budget=Budget.remove(1, [0]),
            transformers="all",
            short="all",
            output=tmp_path / "r.onnx",
        )
    assert not [*tmp_path.iterdir()]
