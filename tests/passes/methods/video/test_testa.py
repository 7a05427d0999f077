"""TESTA: votes over patches for whole frames, then pairs of patches inside each frame, written with loops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS, clip, cosine, matched, means, same_merge
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError


def frame_groups(metric: Any, frames: int, remove: int, variant: str) -> list[list[int]]:
    """Groups of frames in output order; metric [F,n,D]."""
    even, odd = range(0, frames, 2), range(1, frames, 2)
    goal, score = {}, {}
    for source in even:
        votes: Counter[int] = Counter()
        best = []
        for place in range(metric.shape[1]):
            similar = [cosine(metric[source, place].tolist(), metric[other, place].tolist()) for other in odd]
            votes[odd[similar.index(max(similar))]] += 1
            best.append(max(similar))
        goal[source] = min(votes, key=lambda frame: (-votes[frame], frame))
        often = Counter(best)
        mode = min(often, key=lambda value: (-often[value], value))
        score[source] = sum(best) / len(best) if variant == "paper" else mode
    ranked = sorted(even, key=lambda frame: -score[frame])
    groups = {frame: [frame] for frame in [*sorted(ranked[remove:]), *odd]}
    for frame in ranked[:remove]:
        groups[goal[frame]].append(frame)
    return list(groups.values())


def by_loops(
    given: Any, image: int, protect: int, frames: int, left: int, after: int, variant: str = "paper"
) -> list[list[int]]:
    """Groups of input positions in output order: frames first, then patches compared by their mean keys."""
    metric = given["keys"][image].astype(np.float64).mean(0)
    sizes = given["size"][image, :, 0] if "size" in given else np.ones(len(metric))
    each = (len(metric) - protect) // frames
    clips = metric[protect:].reshape(frames, each, -1)
    merged = (
        frame_groups(clips, frames, frames - left, variant) if left < frames else [[f] for f in range(frames)]
    )
    result = [[place] for place in range(protect)]
    for group in merged:
        places = [[protect + frame * each + i for frame in group] for i in range(each)]
        rows, _ = means(metric, sizes, places)
        inside = [[i] for i in range(each)]
        if after < each:
            inside = matched(rows.tolist(), each - after, protect, by_value=protect == 0)
        result += [[place for i in part for place in places[i]] for part in inside]
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("protect", "batch", "sized"), [(0, 3, True), (1, 1, True), (1, 3, False), (2, 1, True)]
)
@pytest.mark.parametrize(
    ("merge", "frames", "each", "left", "after"),
    [
        ("both", 6, 7, 5, 5),
        ("both", 4, 6, 3, 6),
        ("both", 1, 9, 1, 5),
        ("both", 2, 4, 1, 4),
        ("frames", 7, 5, 4, 5),
        ("frames", 5, 3, 4, 3),
        ("frames", 8, 2, 4, 2),
        ("patches", 4, 7, 4, 4),
        ("patches", 3, 8, 3, 4),
    ],
)
def test_equals_the_loops(
    merge: str,
    frames: int,
    each: int,
    left: int,
    after: int,
    protect: int,
    batch: int,
    sized: bool,
    backend: str,
) -> None:
    given = clip(frames, each, protect, batch, sized=sized)
    keep = protect + left * after
    found = apply_method("testa", given, keep=keep, protect=protect, merge=merge, backend=backend)
    for image in range(batch):
        same_merge(found, image, given, by_loops(given, image, protect, frames, left, after))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("seed", range(4))
def test_variants_rank_frames_by_mean_or_mode(variant: str, seed: int, backend: str) -> None:
    given = clip(9, 6, 1, batch=3, seed=seed)
    found = apply_method("testa", given, keep=1 + 6 * 6, merge="frames", variant=variant, backend=backend)
    for image in range(3):
        same_merge(found, image, given, by_loops(given, image, 1, 9, 6, 6, variant))


def test_the_mode_counts_what_is_equal() -> None:
    """Frame 0 is like frame 1 at two of three places, frame 2 nowhere: the mode is 1, though the mean is lower."""
    keys = np.zeros((1, 1, 12, 3), np.float32)
    keys[0, 0, :, 0] = 1
    keys[0, 0, 0] = [-1, 0, 0.5]
    keys[0, 0, 6:9] = [[1, 0.2, 0], [1, 0.21, 0], [1, 0.22, 0]]
    given = {"x": np.arange(12, dtype="f").reshape(1, 12, 1), "keys": keys, "grid": (4, 1, 3)}
    options: dict[str, Any] = {"keep": 9, "protect": 0, "merge": "frames"}
    for variant, first in (("reference", 2), ("paper", 0)):
        for backend in BACKENDS:
            found = apply_method("testa", given, variant=variant, backend=backend, **options)
            assert found["index"][0].tolist() == [3 * first + i for i in range(3)] + [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("remove_frames", [0, 2, 3, 9])
def test_how_many_frames_leave(remove_frames: int) -> None:
    """At most half of them."""
    given = clip(6, 4, 1)
    left = 6 - min(remove_frames, 3)
    after = 3 if left == 6 else 4
    found = apply_method("testa", given, keep=1 + left * after, remove_frames=remove_frames)
    same_merge(found, 0, given, by_loops(given, 0, 1, 6, left, after))


def test_the_next_site_knows_how_many_frames_are_left() -> None:
    given = clip(6, 4, 1)
    first = apply_method("testa", given, keep=1 + 5 * 3)
    assert [name for name in first if name.startswith("state_")] == ["state_frames5"]
    later = {"x": first["tokens"], "size": first["size"], "keys": clip(5, 3, 1, seed=2)["keys"]}
    found = apply_method("testa", later, keep=1 + 4 * 3, state={"frames5": first["state_frames5"]})
    same_merge(found, 0, later, by_loops(later, 0, 1, 5, 4, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_tokens_pair_by_position(backend: str) -> None:
    """Ties: the earliest even frame joins the first odd one, the first sources the first destination."""
    given = clip(4, 3, 1, batch=3)
    given["keys"][:] = 1
    found = apply_method("testa", given, keep=1 + 3 * 2, backend=backend)
    whole = [[7], [8], [9]], [[4, 1], [5, 2], [6, 3]], [[10], [11], [12]]
    groups = [group for first, second, third in whole for group in ([*first, *second], third)]
    for image in range(3):
        same_merge(found, image, given, [[0], *groups])


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0], ids=str)
@pytest.mark.parametrize("where", [0, 8, slice(7, 13), slice(None)], ids=["protected", "one", "frame", "all"])
def test_odd_numbers_choose_alike(bad: float, where: Any, variant: str) -> None:
    """Both backends choose the same, and every token is in one output."""
    given = clip(4, 6, 1, batch=3)
    given["keys"][:, :, where] = bad
    for merge, keep in (("both", 1 + 3 * 5), ("frames", 1 + 2 * 6)):
        both = [
            apply_method("testa", given, keep=keep, merge=merge, variant=variant, backend=backend)["assign"]
            for backend in BACKENDS
        ]
        np.testing.assert_array_equal(*both)
        assert all(set(image) == set(range(keep)) for image in both[0])


def test_a_frame_without_numbers_is_merged_last() -> None:
    given = clip(6, 4, 0)
    given["keys"][:, :, 0:4] = np.nan
    found = apply_method("testa", given, keep=16, protect=0, merge="frames")
    assert found["index"][0, :4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 23}, PlanError, "equally many tokens in each of 3 frames, so 23 of 25 cannot stay; 22 or 25 can"),
        ({"keep": 22, "merge": "both"}, PlanError, "leaves 3 to 6 of 6 tokens of a frame .* would leave 7"),
        ({"keep": 22, "merge": "frames"}, PlanError, "in each of 6 places of a frame, so 22 .* 19 or 25 can"),
        ({"keep": 22, "frames": 5}, PlanError, "24 tokens are not 5 frames of equal size"),
        ({"keep": 21, "merge": "all"}, MethodError, "expected one of both, frames, patches"),
        ({"keep": 21, "variant": "release"}, MethodError, "expected one of paper, reference"),
        ({"keep": 21, "remove_frames": -1}, MethodError, "remove_frames=-1 .* 0 or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = clip(4, 6, 1)
    if "frames" in options:
        del given["grid"]
    with pytest.raises(error, match=message):
        apply_method("testa", given, **options)
