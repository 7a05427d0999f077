"""DyMU with a fixed count merges as ToMe, and its map brings every place its token."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.helpers.given import arrays
from tokenrt import apply_method


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
@pytest.mark.parametrize("protect", [0, 1])
def test_it_merges_as_tome_and_unmerges_by_its_map(protect: int, backend: str) -> None:
    given = arrays(33, 2, protect)
    found, tome = (
        apply_method(name, given, keep=22, protect=protect, restore=True, backend=backend)
        for name in ("dymu", "tome")
    )
    for key in ("tokens", "size", "index", "assign"):
        np.testing.assert_array_equal(found[key], tome[key])
    places = np.take_along_axis(found["tokens"], found["assign"][:, :, None], axis=1)
    np.testing.assert_array_equal(found["restored"], places)
