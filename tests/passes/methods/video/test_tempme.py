"""TempMe: each frame by itself, neighbouring frames together, and which blocks join how many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS, clip, matched, same_merge
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods

SHORT = {"frame_positions": np.ones((3, 6), np.float32)}


def by_loops(metric: Any, protect: int, clips: int, remove: int) -> list[list[int]]:
    """Groups of input positions in output order, for one image; `remove` tokens leave each clip."""
    each = (len(metric) - protect) // clips
    result = [[place] for place in range(protect)]
    for number in range(clips):
        start = protect + number * each
        groups = matched(metric[start : start + each].tolist(), remove, protect, by_value=False)
        result += [[start + i for i in group] for group in groups]
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("protect", "batch", "sized"), [(0, 1, True), (1, 3, True), (2, 1, False)])
@pytest.mark.parametrize(("frames", "each", "remove"), [(4, 7, 3), (3, 8, 4), (1, 9, 2), (2, 2, 1)])
def test_inside_frames(
    frames: int, each: int, remove: int, protect: int, batch: int, sized: bool, backend: str
) -> None:
    given = clip(frames, each, protect, batch, sized=sized)
    keep = protect + frames * (each - remove)
    found = apply_method("tempme", given, keep=keep, protect=protect, backend=backend)
    for image in range(batch):
        metric = given["keys"][image].astype(np.float64).mean(0)
        same_merge(found, image, given, by_loops(metric, protect, frames, remove))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("protect", "batch"), [(0, 3), (1, 1)])
@pytest.mark.parametrize(("block", "clips"), [(7, 12), (8, 6), (9, 3), (10, 1), (11, 1)])
def test_twelve_frames_are_joined_as_published(
    block: int, clips: int, protect: int, batch: int, backend: str
) -> None:
    """2, 2 and 3 at blocks 8, 9 and 10, compared by tokens there and by keys elsewhere."""
    given = clip(12, 4, protect, batch)
    remove = 12 // clips
    found = apply_method(
        "tempme", given, keep=protect + 36, protect=protect, block=block, blocks=12, backend=backend
    )
    for image in range(batch):
        metric = (
            given["x"][image].astype(np.float64)
            if block in (8, 9, 10)
            else given["keys"][image].astype(np.float64).mean(0)
        )
        same_merge(found, image, given, by_loops(metric, protect, clips, remove))


def test_joining_as_given() -> None:
    given = clip(6, 5, 1)
    for join, block, clips in (("none", 11, 6), ("2:3,4:2", 1, 6), ("2:3,4:2", 2, 2), ("2:3,4:2", 5, 1)):
        found = apply_method(
            "tempme", given, keep=31 - 6, block=block, blocks=12, join=join, metric="keys", backend="numpy"
        )
        metric = given["keys"][0].astype(np.float64).mean(0)
        same_merge(found, 0, given, by_loops(metric, 1, clips, 6 // clips))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frame_positions_are_added_behind_the_matching(backend: str, tmp_path: Any) -> None:
    given = clip(4, 5, 1, batch=3)
    table = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    np.savez(tmp_path / "positions.npz", frame_positions=table)
    options: dict[str, Any] = {"keep": 17, "join": "0:2", "backend": backend}
    moved = given | {"x": given["x"] + np.concatenate([np.zeros((1, 6)), table.repeat(5, 0)]).astype("f")}
    for weights in ({"block0.frame_positions": table}, str(tmp_path / "positions.npz")):
        found = apply_method("tempme", given, weights=weights, **options)
        for image in range(3):
            groups = by_loops(given["x"][image].astype(np.float64), 1, 2, 2)
            same_merge(found, image, moved, groups)
    plain = apply_method("tempme", given, weights={"frame_positions": table}, **options | {"join": "none"})
    np.testing.assert_array_equal(
        plain["tokens"], apply_method("tempme", given, **options | {"join": "none"})["tokens"]
    )


def test_the_next_site_knows_the_frames() -> None:
    """Behind the first site no grid says how many frames there are, the state does."""
    given = clip(4, 6, 1)
    first = apply_method("tempme", given, keep=21)
    state = {"frames4": first["state_frames4"]}
    later = {"x": first["tokens"], "size": first["size"], "keys": clip(4, 5, 1, seed=1)["keys"]}
    found = apply_method("tempme", later, keep=17, state=state)
    same_merge(found, 0, later, by_loops(later["keys"][0].astype(np.float64).mean(0), 1, 4, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
def test_equal_tokens_pair_by_position(protect: int, backend: str) -> None:
    """Ties: the first sources of each frame leave, all to its first destination."""
    given = clip(2, 5, protect)
    given["keys"][:] = 1
    found = apply_method("tempme", given, keep=protect + 6, protect=protect, backend=backend)
    first = [[1, 0, 2], [3]] if protect == 0 else [[0, 1, 3], [2], [4]]
    inside = [[4], *first] if protect == 0 else first
    groups = [[protect + 5 * frame + i for i in group] for frame in (0, 1) for group in inside]
    same_merge(found, 0, given, [[0]] * protect + groups)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0], ids=str)
@pytest.mark.parametrize("join", ["none", "0:2"])
def test_odd_numbers_keep_to_their_clip(bad: float, join: str) -> None:
    """A token whose similarity is unknown pairs last; both backends choose alike, and no other clip changes."""
    given = clip(4, 6, 1, batch=3)
    given["keys"][:, :, 3] = bad
    options: dict[str, Any] = {"keep": 17, "join": join, "metric": "keys"}
    both = [apply_method("tempme", given, backend=backend, **options)["assign"] for backend in BACKENDS]
    np.testing.assert_array_equal(*both)
    assert sorted({int(slot) for slot in both[0].ravel()}) == list(range(17))
    clean = apply_method("tempme", clip(4, 6, 1, batch=3), **options)["assign"]
    np.testing.assert_array_equal(both[0][:, 13:], clean[:, 13:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 20}, PlanError, "equally many tokens in each of 4 groups of frames, so 20 of 25 .* 17 or 21 can"),
        ({"keep": 20, "frames": 5, "grid": None}, PlanError, "24 tokens are not 5 frames of equal size"),
        ({"keep": 23, "join": "0:3"}, MethodError, "joins 3 frames up to block 0, and 4 frames do not split"),
        ({"keep": 21, "join": "8"}, MethodError, "option join=8 .* expected auto, none, or BLOCK:FRAMES"),
        ({"keep": 21, "join": "8:0"}, MethodError, "option join=8:0"),
        ({"keep": 21, "join": "8:2,8:2"}, MethodError, "option join=8:2,8:2"),
        ({"keep": 21, "metric": "values"}, MethodError, "option metric=values"),
        ({"keep": 21, "join": "0:2", "weights": {}}, MethodError, r"lack 'frame_positions' .* frame_positions \[F,C\]"),
        ({"keep": 21, "join": "0:2", "weights": SHORT}, MethodError, "3 rows, and block 0 joins 4 clips"),
    ],
)  # fmt: skip
def test_what_does_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = clip(4, 6, 1)
    if "grid" in options:
        del given["grid"], options["grid"]
    with pytest.raises(error, match=message):
        apply_method("tempme", given, **options)


def test_how_few_it_can_leave() -> None:
    assert methods.get("tempme")().fewest(29, 1) == 15
    assert apply_method("tempme", clip(4, 7, 1), keep=17)["tokens"].shape[1] == 17
    with pytest.raises(PlanError, match="'tempme' leaves at least 15 of 29 tokens"):
        apply_method("tempme", clip(4, 7, 1), keep=13)
