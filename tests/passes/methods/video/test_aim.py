"""AIM: rounds of plain means in each frame, written once more with loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS, clip, matched
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.video.aim import halvings


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
@pytest.mark.parametrize(
    ("frames", "each", "left", "rounds"), [(3, 12, 3, ""), (2, 9, 4, ""), (1, 8, 1, ""), (2, 12, 7, "2+3")]
)
def test_rounds_of_plain_means(
    frames: int, each: int, left: int, rounds: str, protect: int, backend: str
) -> None:
    given = clip(frames, each, protect, batch=2)
    keep = protect + frames * left
    found = apply_method("aim", given, keep=keep, protect=protect, rounds=rounds, backend=backend)
    leaving = [int(part) for part in rounds.split("+")] if rounds else halvings(each, left)
    for image in range(2):
        x, size = given["x"][image].astype(np.float64), given["size"][image, :, 0]
        rows, groups = [*x[:protect]], [[place] for place in range(protect)]
        for frame in range(frames):
            own = [x[protect + frame * each + i] for i in range(each)]
            members = [[protect + frame * each + i] for i in range(each)]
            for leave in leaving:
                joined = matched([row.tolist() for row in own], leave, 0, True)
                own = [np.mean([own[i] for i in group], axis=0) for group in joined]
                members = [[place for i in group for place in members[i]] for group in joined]
            rows += own
            groups += members
        np.testing.assert_allclose(found["tokens"][image], rows, atol=2e-6)
        np.testing.assert_allclose(found["size"][image, :, 0], [size[group].sum() for group in groups])
        where = {place: slot for slot, group in enumerate(groups) for place in group}
        assert found["assign"][image].tolist() == [where[place] for place in range(len(where))]


def test_as_many_leave_in_each_round_as_can() -> None:
    assert halvings(196, 49) == [98, 49]
    assert halvings(9, 2) == [4, 2, 1]
    assert halvings(5, 5) == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rounds": "7"}, PlanError, "7 of 12 tokens cannot leave in one round"),
        ({"rounds": "6+1"}, PlanError, "leaves 5 of 12 tokens a frame, and 12 of 36 tokens would be 4"),
        ({"rounds": "all"}, MethodError, "expected numbers, as in 98"),
    ],
)
def test_rounds_that_do_not_fit_are_refused(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        apply_method("aim", clip(3, 12, 0), keep=12, protect=0, **options)
