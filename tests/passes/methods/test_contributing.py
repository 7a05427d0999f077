"""The example of CONTRIBUTING is a method: put into a file it registers, agrees on both backends, and stays short."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.helpers.given import arrays
from tokenrt import apply_method
from tokenrt.passes import methods
from tokenrt.passes.methods import pruning

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"


def test_the_example_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "(Method)" in block
    )
    assert len(source.splitlines()) < 60
    (tmp_path / "outlier.py").write_text(source)
    monkeypatch.setattr(pruning, "__path__", [*pruning.__path__, str(tmp_path)])
    methods._registry.cache_clear()
    try:
        given = arrays(33, 3, 1)
        found, exact = (
            apply_method("outlier", given, keep=20, backend=backend)["index"]
            for backend in ("onnxruntime", "numpy")
        )
    finally:
        methods._registry.cache_clear()
    np.testing.assert_array_equal(found, exact)
    keys = given["keys"].mean(axis=1)
    away = np.square(keys - keys.mean(axis=1, keepdims=True)).sum(axis=2)
    for image in range(3):
        farthest = 1 + np.argsort(-away[image, 1:])[:19]
        assert exact[image].tolist() == [0, *sorted(farthest)]
