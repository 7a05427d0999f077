"""TokenRestore: the function body in ONNX Runtime against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import OPSETS, expect, run


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_every_position_gets_its_token(opset: int, kind: type) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, 11, 5)).astype(kind)
    source_map = rng.integers(0, 11, (3, 40))
    (found,) = run("TokenRestore", [tokens, source_map], {}, opset)
    np.testing.assert_array_equal(found, expect("TokenRestore", [tokens, source_map], {})[0])
    assert found.dtype == kind
    np.testing.assert_array_equal(found[2, 7], tokens[2, source_map[2, 7]])
