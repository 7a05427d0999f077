"""Methods that choose among the frames of a clip at a model's output, written once more with loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods

F, n, C = 6, 12, 8
GRID = (F, 3, 4)


def cosine(left: Any, right: Any) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def clip(protect: int, seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).standard_normal((2, protect + F * n, C)).astype(np.float32)
    return {"x": x, "grid": GRID}


def folded(x: Any, protect: int) -> Any:
    return x[protect:].astype(np.float64).reshape(F, n, C)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
@pytest.mark.parametrize("kept", [n, n + 1, 40, F * n - 1])
def test_evs_keeps_what_changed_most(kept: int, protect: int, backend: str) -> None:
    given = clip(protect)
    found = apply_method("evs", given, keep=protect + kept, protect=protect, backend=backend)
    for x, index in zip(given["x"], np.broadcast_to(found["index"], (2, protect + kept)), strict=True):
        rows = folded(x, protect)
        changed = {t * n + i: 1 - cosine(rows[t, i], rows[t - 1, i]) for t in range(1, F) for i in range(n)}
        best = sorted(changed, key=lambda place: (-changed[place], place))[: kept - n]
        places = [*range(n), *sorted(best)]
        assert index.tolist() == [*range(protect), *(protect + place for place in places)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_evs_of_a_still_picture_keeps_the_first_frames(backend: str) -> None:
    """Rows of ones and minus ones, so that cosines are exact and tie."""
    row = np.random.default_rng(0).choice([-1.0, 1.0], (1, 1, n, 16)).astype(np.float32)
    x = np.tile(row, (2, F, 1, 1)).reshape(2, F * n, 16)
    found = apply_method("evs", {"x": x, "grid": GRID}, keep=30, protect=0, backend=backend)
    assert found["index"].tolist() == [list(range(30))] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("kept", "retention"), [(18, 0.25), (18, 0.0), (7, 0.1), (60, 0.9), (30, 0.25)])
def test_vidcom2_gives_frames_their_shares_and_keeps_the_exact_count(
    kept: int, retention: float, protect: int, backend: str
) -> None:
    given = clip(protect)
    options: dict[str, Any] = {"keep": protect + kept, "protect": protect, "retention": retention}
    found = apply_method("vidcom2", given, backend=backend, **options)
    for x, index in zip(given["x"], found["index"], strict=True):
        wanted = by_loops(folded(x, protect), kept, retention or kept / (F * n))
        assert index.tolist() == [*range(protect), *(protect + place for place in wanted)]


def by_loops(rows: Any, kept: int, retention: float) -> list[int]:
    steady = np.argsort(rows.reshape(-1, C).var(axis=0), kind="stable")[: C // 2]
    unit = rows[..., steady] / np.linalg.norm(rows[..., steady], axis=-1, keepdims=True)

    def like(row: Any, center: Any) -> float:
        return float(sum(np.exp(-np.sum((row - center) ** 2) / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2)))

    video = np.array([[like(row, unit.mean((0, 1))) for row in frame] for frame in unit])
    score = video + np.array([[like(row, frame.mean(0)) for row in frame] for frame in unit])
    weight = np.exp((-video.mean(1) - (-video.mean(1)).max()) / 0.01)
    part = weight / weight.sum()
    chosen = []
    for t in range(F):
        share = max(1, round(n * min(retention * (1 + part[t] - 1 / F), 1)))
        chosen += [t * n + int(i) for i in np.argsort(score[t], kind="stable")[:share]]
    flat = score.ravel()
    chosen = sorted(chosen, key=flat.__getitem__)[:kept]
    others = sorted(set(range(F * n)) - set(chosen), key=flat.__getitem__)
    return sorted([*chosen, *others[: kept - len(chosen)]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize("order", ["position", "score"])
@pytest.mark.parametrize("stay", [1, 5, 11])
def test_dycoke_thins_every_second_frame_and_some_two_apart(
    stay: int, order: str, protect: int, backend: str
) -> None:
    given = clip(protect)
    pairs = {1: 0, 2: 0, 3: 2, 5: 4}
    keep = protect + F * n - len(pairs) * (n - stay)
    found = apply_method("dycoke", given, keep=keep, protect=protect, order=order, backend=backend)
    for x, index in zip(given["x"], found["index"], strict=True):
        rows, places = folded(x, protect), list(range(protect))
        for t in range(F):
            kept = list(range(n))
            if t in pairs:
                alike = [cosine(rows[t, i], rows[pairs[t], i]) for i in range(n)]
                kept = sorted(kept, key=alike.__getitem__)[:stay]
            kept = sorted(kept) if order == "position" else kept
            places += [protect + t * n + i for i in kept]
        assert index.tolist() == places


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", ["even", "importance"])
def test_quotas_say_how_many_of_each_frame_stay(score: str, backend: str) -> None:
    given = clip(1)
    quotas = np.array([[12, 0, 1, 5, 7, 3], [0, 0, 12, 12, 4, 0]])
    importance = np.random.default_rng(1).random((2, 1 + F * n)).astype(np.float32)
    given |= {"quotas": quotas, "importance": importance}
    found = apply_method("quota", given, keep=29, protect=1, score=score, backend=backend)
    for image, index in enumerate(found["index"]):
        frame = (index[1:] - 1) // n
        assert np.bincount(frame, minlength=F).tolist() == quotas[image].tolist()
        for t in range(F):
            own = (index[1:] - 1)[frame == t] - t * n
            if score == "even":
                wanted = [i for i in range(n) if i * quotas[image, t] // n < (i + 1) * quotas[image, t] // n]
            else:
                ranked = np.argsort(-importance[image, 1 + t * n : 1 + (t + 1) * n], kind="stable")
                wanted = sorted(ranked[: quotas[image, t]])
            assert own.tolist() == wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_quotas_that_do_not_add_up_never_lead_out_of_range(backend: str) -> None:
    for quotas, first in (([12, 12, 12, 0, 0, 0], [*range(20)]), ([3, 0, 0, 0, 0, 0], None)):
        given = clip(0) | {"quotas": np.array([quotas] * 2)}
        index = apply_method("quota", given, keep=20, protect=0, backend=backend)["index"][0].tolist()
        assert len(set(index)) == 20
        assert sorted(index) == index
        assert first is None or index == first
        assert {3, 7, 11} <= set(index)


@pytest.mark.parametrize(
    ("name", "keep", "said"),
    [
        ("evs", 11, "keeps the first frame whole, 12 tokens"),
        ("dycoke", 71, "thins 4 of 6 frames of 12 tokens alike, so 71 of 72 tokens cannot stay; 68 can"),
        ("dycoke", 20, "say the frames with --set frames=F"),
    ],
)
def test_counts_that_no_rule_leaves_are_refused(name: str, keep: int, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        apply_method(name, clip(0), keep=keep, protect=0)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(MethodError, match="retention=2"):
        methods.get("vidcom2").from_options({"retention": 2})
    with pytest.raises(PlanError, match="cannot split 72 tokens into 7 equal groups"):
        apply_method("evs", clip(0), keep=40, protect=0, frames=7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["vidcom2", "evs", "dycoke"])
def test_padding_leaves_first_and_counts_in_no_mean(name: str, backend: str) -> None:
    given = clip(0)
    given["size"] = np.ones((2, F * n, 1), np.float32)
    given["size"][:, 5 * n + 3 :] = 0
    found = [
        apply_method(
            name,
            given | {"x": np.where(given["size"] > 0, given["x"], junk)},
            keep=40,
            protect=0,
            backend=backend,
        )
        for junk in (0.0, 7.0)
    ]
    np.testing.assert_array_equal(found[0]["index"], found[1]["index"])
    if name == "vidcom2":
        assert (found[0]["index"] < 5 * n + 3).all()
