"""STA: the walk through groups of frames, written once more with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS, clip, cosine
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError


def by_loops(x: Any, metric: Any, protect: int, groups: int, kept: int, backward: bool) -> list[int]:
    """Input positions in output order, for one image."""
    each = (len(x) - protect) // groups
    chosen: dict[int, list[int]] = {}
    before: list[Any] = []
    share: list[float] = []
    for step, group in enumerate(sorted(range(groups), reverse=backward)):
        places = range(protect + group * each, protect + (group + 1) * each)
        own = [metric[place].tolist() for place in places]
        if step == 0:
            odd = list(range(1, each, 2))
            best = {i: max(cosine(own[i], own[j]) for j in odd) for i in range(0, each, 2)}
            chosen[group] = [*odd, *sorted(best, key=best.__getitem__)][:kept]
            before, share = own, [1.0] * each
        else:
            norm = [sum(abs(float(v)) for v in x[place]) for place in places]
            span = max(norm) - min(norm)
            saliency = [(value - min(norm)) / span if span else 0.0 for value in norm]
            weight = [[math.exp(cosine(row, other)) for other in before] for row in own]
            column = [sum(row[j] for row in weight) for j in range(len(before))]
            g = [sum(row[j] / column[j] * share[j] for j in range(len(before))) for row in weight]
            score = [g[i] * (1 - saliency[i]) for i in range(each)]
            chosen[group] = sorted(range(each), key=score.__getitem__)[:kept]
            before = [own[i] for i in chosen[group]]
            share = [g[i] / sum(g[j] for j in chosen[group]) for i in chosen[group]]
    walked = [protect + group * each + i for group in range(groups) for i in chosen[group]]
    return [*range(protect), *walked]


def agrees(found: Any, given: Any, protect: int, groups: int, kept: int, backward: bool) -> None:
    for image in range(len(given["x"])):
        x = given["x"][image].astype(np.float64)
        metric = given["keys"][image].astype(np.float64).mean(0)
        wanted = by_loops(x, metric, protect, groups, kept, backward)
        assert found["index"][image].tolist() == wanted
        np.testing.assert_array_equal(found["tokens"][image], given["x"][image][wanted])
        where = {place: slot for slot, place in enumerate(wanted)}
        assert found["assign"][image].tolist() == [where.get(i, -1) for i in range(len(x))]
        if "size" in given:
            np.testing.assert_array_equal(found["size"][image], given["size"][image][wanted])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("protect", "batch", "sized"), [(0, 1, False), (1, 3, True)])
@pytest.mark.parametrize(("frames", "each", "kept"), [(4, 9, 6), (3, 8, 1), (2, 5, 4), (1, 7, 3), (8, 2, 1)])
@pytest.mark.parametrize("walk", ["forward", "backward"])
def test_equals_the_loops(
    frames: int, each: int, kept: int, protect: int, batch: int, sized: bool, walk: str, backend: str
) -> None:
    given = clip(frames, each, protect, batch, sized=sized)
    found = apply_method(
        "sta", given, keep=protect + frames * kept, protect=protect, walk=walk, backend=backend
    )
    agrees(found, given, protect, frames, kept, walk == "backward")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("block", "blocks", "groups", "backward"),
    [
        (0, 12, 8, False),
        (3, 12, 8, False),
        (4, 12, 4, True),
        (7, 12, 4, True),
        (8, 12, 2, False),
        (11, 12, 2, False),
        (8, 24, 4, True),
        (16, 24, 2, False),
    ],
)
def test_groups_and_direction_alternate_with_depth(
    block: int, blocks: int, groups: int, backward: bool, backend: str
) -> None:
    """Eight frames one by one, then four pairs backward, then two halves forward."""
    given = clip(8, 3, 1)
    found = apply_method("sta", given, keep=17, block=block, blocks=blocks, backend=backend)
    agrees(found, given, 1, groups, 16 // groups, backward)


def test_the_next_site_knows_the_frames() -> None:
    given = clip(8, 4, 0)
    first = apply_method("sta", given, keep=24, protect=0)
    later = {"x": first["tokens"], "keys": clip(8, 3, 0, seed=1)["keys"]}
    found = apply_method("sta", later, keep=16, protect=0, block=4, state={"frames8": first["state_frames8"]})
    agrees(found, later, 0, 4, 4, True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_tokens_leave_from_the_end(backend: str) -> None:
    """Ties: the smaller position stays; odd ones stay longest in the first group."""
    given = clip(3, 5, 1, batch=3)
    given["keys"][:], given["x"][:] = 1, 2
    found = apply_method("sta", given, keep=1 + 3 * 3, backend=backend)
    assert found["index"].tolist() == [[0, 2, 4, 1, 6, 7, 8, 11, 12, 13]] * 3


@pytest.mark.parametrize("name", ["keys", "x"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0], ids=str)
@pytest.mark.parametrize("where", [0, 7, slice(None)], ids=["protected", "one", "all"])
def test_odd_numbers_choose_alike(name: str, bad: float, where: Any) -> None:
    given = clip(3, 6, 1, batch=3)
    if name == "keys":
        given["keys"][:, :, where] = bad
    else:
        given["x"][:, where] = bad
    both = [apply_method("sta", given, keep=13, backend=backend)["index"] for backend in BACKENDS]
    np.testing.assert_array_equal(*both)
    for image in both[0]:
        inside = np.sort(image[1:].reshape(3, 4)) - 1
        assert (inside // 6 == np.arange(3)[:, None]).all()
        assert (np.diff(inside) > 0).all()


def test_a_salient_token_stays_and_one_without_number_counts_as_faint() -> None:
    given = clip(2, 6, 0)
    given["keys"][:] = 1
    given["x"][0, 6:] = np.arange(6)[:, None] + 1
    given["x"][0, 11] = np.nan
    found = apply_method("sta", given, keep=6, protect=0)
    assert found["index"][0, 3:].tolist() == [10, 9, 8]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 20}, PlanError, "equally many tokens in each of 4 groups of frames, so 20 of 25 .* 17 or 21 can"),
        ({"keep": 3}, PlanError, "so 3 of 25 cannot stay; 5 can"),
        ({"keep": 21, "groups": 5}, PlanError, "cannot split 24 tokens into 5 equal groups .* --set frames=F"),
        ({"keep": 21, "walk": "sideways"}, MethodError, "expected one of forward, backward, auto"),
    ],
)  # fmt: skip
def test_what_does_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        apply_method("sta", clip(4, 6, 1), **options)
