"""HoliTom, FastVID and PruneVid on given segments, written once more with loops."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

F, n, C = 6, 20, 8
GRID = (F, 4, 5)


def clip(protect: int, seed: int = 0) -> dict[str, Any]:
    """Frames that drift, so that some places stand stiller than others."""
    rng = np.random.default_rng(seed)
    drift = rng.standard_normal((2, F, n, C)) * rng.random((2, 1, n, 1)) + rng.standard_normal((2, 1, n, C))
    x = np.concatenate([rng.standard_normal((2, protect, C)), drift.reshape(2, F * n, C)], axis=1)
    importance = rng.random((2, protect + F * n))
    return {"x": x.astype(np.float32), "importance": importance.astype(np.float32), "grid": GRID}


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def peaks(rows: Any, keep: int, neighbours: int) -> tuple[Any, Any]:
    """Density peaks by descending score, and the nearest of each row."""
    apart = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1) / rows.shape[1])
    density = np.exp(-(np.sort(apart, axis=1)[:, :neighbours] ** 2).mean(1))
    gap = np.where(density[None] > density[:, None], apart, apart.max()).min(1)
    center = np.argsort(-gap * density, kind="stable")[:keep]
    assign = apart[center].argmin(0)
    assign[center] = np.arange(keep)
    return center, assign


def holitom(x: Any, score: Any, still: list[int], ratio: float, beta: float | None) -> tuple[Any, list[int]]:
    rows, index = [], []
    for segment, held in enumerate(still):
        own = x[segment * 3 : segment * 3 + 3]
        alike = (unit(own[1:]) * unit(own[:-1])).sum(-1).min(0)
        places = np.sort(np.argsort(-alike, kind="stable")[:held])
        others = np.setdiff1d(np.arange(n), places)
        keep = round(held * ratio)
        if keep:
            mean = own[:, places].mean(0)
            center, assign = peaks(mean, keep, min(7, keep))
            for slot in np.argsort(center):
                rest = [i for i in range(held) if assign[i] == slot and i != center[slot]]
                share = len(rest) / (len(rest) + 1) if beta is None else (1 - beta if rest else 0)
                joined = mean[rest].mean(0) if rest else 0
                rows.append((1 - share) * mean[center[slot]] + share * joined)
                index.append(segment * 3 * n + places[center[slot]])
        for frame in range(3):
            rated = score[segment * 3 + frame, others]
            best = others[np.sort(np.argsort(-rated, kind="stable")[: ceil((n - held) * ratio)])]
            rows += [*own[frame, best]]
            index += [(segment * 3 + frame) * n + place for place in best]
    return np.array(rows), index


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("still", "ratio"), [([8, 12], 0.5), ([20, 3], 0.3), ([0, 16], 0.9)])
@pytest.mark.parametrize("beta", [0.6, None])
def test_holitom(still: list[int], ratio: float, beta: float | None, protect: int, backend: str) -> None:
    given = clip(protect)
    keep = sum(round(held * ratio) + 3 * ceil((n - held) * ratio) for held in still)
    options: dict[str, Any] = {"segments": "3+3", "still": "+".join(map(str, still)), "score": "importance"}
    options |= {"mix": "mean"} if beta is None else {"beta": beta}
    found = apply_method("holitom", given, keep=protect + keep, protect=protect, backend=backend, **options)
    for image in range(2):
        x = given["x"][image, protect:].astype(np.float64).reshape(F, n, C)
        score = given["importance"][image, protect:].reshape(F, n)
        rows, index = holitom(x, score, still, ratio, beta)
        np.testing.assert_allclose(found["tokens"][image, protect:], rows, atol=3e-6)
        positions = found["assign"][image][protect:]
        assert [positions[place] for place in index] == [protect + slot for slot in range(keep)]


def prunevid(x: Any, still: list[int], ratio: float) -> Any:
    def grouped(rows: Any) -> Any:
        if len(rows) <= 14:
            return rows
        keep = int(len(rows) * ratio)
        _, assign = peaks(rows, keep, min(7, keep))
        return np.array([rows[assign == slot].mean(0) for slot in range(keep)])

    made = []
    for segment, held in enumerate(still):
        own = x[segment * 3 : segment * 3 + 3]
        alike = sum((unit(own[a]) * unit(own[b])).sum(-1) for a in range(3) for b in range(3) if a != b)
        places = np.sort(np.argsort(-alike, kind="stable")[:held])
        others = np.setdiff1d(np.arange(n), places)
        made += [grouped(own.mean(0)[places])] * bool(held)
        made += [grouped(frame[others]) for frame in own] * bool(len(others))
    return np.concatenate(made)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize("still", [[16, 3], [20, 0], [5, 9]])
def test_prunevid(still: list[int], protect: int, backend: str) -> None:
    given = clip(protect)
    wanted = [prunevid(x.astype(np.float64).reshape(F, n, C), still, 0.45) for x in given["x"][:, protect:]]
    options: dict[str, Any] = {"segments": "3+3", "still": "+".join(map(str, still))}
    found = apply_method(
        "prunevid", given, keep=protect + len(wanted[0]), protect=protect, backend=backend, **options
    )
    np.testing.assert_allclose(found["tokens"][:, protect:], wanted, atol=3e-6)
    np.testing.assert_array_equal(found["size"].sum(axis=1), [[protect + F * n]] * 2)


def fastvid(x: Any, score: Any, kept: int, context: int, anchor: int, beta: float) -> dict[int, Any]:
    """Token by position, of two segments of two and four frames."""
    made: dict[int, Any] = {}
    for start, length in ((0, 2), (2, 4)):
        rest = []
        for frame in range(start, start + length):
            best = np.argsort(-score[frame], kind="stable")[: kept - context]
            made |= {frame * n + int(place): x[frame, place] for place in best}
            rest += [(frame, place) for place in range(n) if place not in best]
        anchors = range(start + length - 1, start - 1, -anchor)
        centres = []
        for frame in anchors:
            own = [item for item in rest if item[0] == frame]
            center, _ = peaks(np.array([x[item] for item in own]), length * context // len(anchors), 4)
            centres += [own[i] for i in center]
        centres.sort()
        near = unit(np.array([x[item] for item in centres])) @ unit(np.array([x[item] for item in rest])).T
        assign = near.argmax(0)
        for slot, item in enumerate(centres):
            members = [x[other] for other, chosen in zip(rest, assign, strict=True) if chosen == slot]
            middle = max(1 / (len(members) + 1), beta)
            made[item[0] * n + item[1]] = middle * x[item] + (1 - middle) * np.mean(members, axis=0)
    return dict(sorted(made.items()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("kept", "share", "anchor"), [(8, 0.5, 4), (10, 0.4, 2), (5, 0.2, 3)])
def test_fastvid(kept: int, share: float, anchor: int, protect: int, backend: str) -> None:
    given = clip(protect)
    options: dict[str, Any] = {"segments": "2+4", "context": share, "anchor": anchor, "score": "importance"}
    wanted = [
        fastvid(
            given["x"][image, protect:].astype(np.float64).reshape(F, n, C),
            given["importance"][image, protect:].reshape(F, n),
            kept,
            int(kept * share),
            anchor,
            0.6,
        )
        for image in range(2)
    ]
    found = apply_method(
        "fastvid", given, keep=protect + len(wanted[0]), protect=protect, backend=backend, **options
    )
    for image, made in enumerate(wanted):
        assert found["index"][image, protect:].tolist() == [protect + place for place in made]
        np.testing.assert_allclose(found["tokens"][image, protect:], [*made.values()], atol=3e-6)


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("holitom", {"segments": "3+4"}, PlanError, r"segments=3\+4 are 7 frames, and the clip has 6"),
        ("holitom", {"segments": "few"}, MethodError, "expected numbers, as in"),
        ("prunevid", {"segments": "3+3", "still": "5"}, PlanError, "for each of 2 segments"),
        ("prunevid", {"segments": "3+3", "still": "21+0"}, PlanError, "places up to 20"),
        ("fastvid", {"segments": "6", "context": 0.9, "score": "importance"}, PlanError, "centres among the"),
        ("fastvid", {"context": 1.0}, MethodError, "context below 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        apply_method(name, clip(0), keep=60, protect=0, **options)


def test_fastvid_takes_no_tokens_that_may_be_padding() -> None:
    """Sizes may be 0, which says padding: that of one token is."""
    sizes = np.ones((2, F * n, 1), np.float32)
    sizes[0, 5] = 0
    with pytest.raises(MethodError, match=r"fastvid joins all tokens of a segment, .* may be padding"):
        apply_method(
            "fastvid", clip(0) | {"size": sizes}, keep=48, protect=0, score="importance", segments="6"
        )
