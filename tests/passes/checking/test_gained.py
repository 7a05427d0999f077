"""Checking models that a method gave another input, or whose frames it made one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.helpers.projectors import pictures, tower
from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check import check
from tokenrt.passes.checking.verdict import HELD, SILENT
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.reduce import reduce


def quotas() -> Any:
    """A clip of four frames, of whose 64 tokens 20 stay, as many of each frame as an input says."""
    return reduce(
        tower("resized"), method="quota", budget=Budget.tokens([20]), site="output", grid=(4, 4, 4)
    ).model


@pytest.mark.parametrize(
    ("method", "shape"), [("cdpruner", ["text=Bx5x40"]), ("recoverable_compression", None)]
)
def test_an_input_of_floats_gets_noise(method: str, shape: list[str] | None) -> None:
    made = reduce(tower("mlp"), method=method, budget=Budget.tokens([9]), site="output", shape=shape)
    report = check(tower("mlp"), made.model, samples=1)
    assert report.ok, report.reasons
    assert {line.name: line.state for line in report.properties}["nothing removed"] == HELD


def test_an_input_of_counts_wants_data() -> None:
    with pytest.raises(
        TokenrtError, match=r"input 'quotas' \[1,4\] is the reduced model's alone.*give --data"
    ):
        check(tower("resized"), quotas(), samples=1)


def test_frames_that_became_one_sequence_have_no_batch(tmp_path: Path) -> None:
    given = {name: value[None] for name, value in pictures("resized").items()}
    np.savez(tmp_path / "one.npz", **given, quotas=np.array([[[8, 2, 4, 6]]]))
    report = check(tower("resized"), quotas(), data=tmp_path / "one.npz")
    assert report.ok, report.reasons
    line = {line.name: line for line in report.properties}["batch permuted"]
    assert line.state == SILENT
    assert "output 'image_features' of the reduced model is one sequence of all pictures" in line.why
