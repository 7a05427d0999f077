"""What holds for every video method: half precision, leading tokens, and the same choice at any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers.clips import BACKENDS, clip
from tokenrt import apply_method

CASES: dict[str, dict[str, Any]] = {
    "sta": {"keep": 1 + 4 * 5},
    "tempme": {"keep": 1 + 4 * 5},
    "tempme-joined": {"keep": 1 + 4 * 5, "join": "0:2"},
    "testa": {"keep": 1 + 3 * 5},
    "testa-frames": {"keep": 1 + 3 * 7, "merge": "frames"},
    "testa-patches": {"keep": 1 + 4 * 5, "merge": "patches", "variant": "reference"},
}


def result(case: str, given: Any, **options: Any) -> Any:
    return apply_method(case.partition("-")[0], given, **CASES[case], **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_half_precision_tokens(case: str, backend: str) -> None:
    """Tokens of float16 are merged in float32 and rounded once; the choice is that of the same numbers."""
    given = clip(4, 7, 1, batch=3)
    half = given | {"x": given["x"].astype(np.float16)}
    single = given | {"x": half["x"].astype(np.float32)}
    found, wanted = result(case, half, backend=backend), result(case, single, backend=backend)
    assert found["tokens"].dtype == np.float16
    np.testing.assert_array_equal(found["assign"], wanted["assign"])
    np.testing.assert_allclose(found["tokens"], wanted["tokens"], rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_each_clip_is_reduced_by_itself(case: str, backend: str) -> None:
    given = clip(4, 7, 1, batch=3)
    every = result(case, given, backend=backend)
    for image in range(3):
        alone = {key: value if key == "grid" else value[image : image + 1] for key, value in given.items()}
        one = result(case, alone, backend=backend)
        np.testing.assert_array_equal(every["assign"][image : image + 1], one["assign"])
        np.testing.assert_allclose(every["tokens"][image : image + 1], one["tokens"], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_restored_tokens_are_those_of_the_map(case: str, backend: str) -> None:
    """A dropped token keeps its own value."""
    given = clip(4, 7, 1, batch=3)
    found = result(case, given, backend=backend, restore=True)
    for image, places in enumerate(found["assign"]):
        own = np.where(places[:, None] < 0, given["x"][image], found["tokens"][image][places])
        np.testing.assert_array_equal(found["restored"][image], own)
