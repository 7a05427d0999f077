"""What holds for every method of the bipartite family: types, images of a batch, options from text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers.given import call
from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.passes import methods

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("tome", {"every": 3}), ("tofu", {"strategy": "merge"}), ("tofu", {"strategy": "prune"}), ("pitome", {"mode": "pitome"}),
    ("pitome", {"mode": "pitome_bsm"}), ("pitome", {"mode": "text", "margin": 0.5}), ("mctf", {}), ("mctf", {"pooling": "max"}),
    ("diffrate", {}), ("diffrate", {"prune_kept": "37"}), ("dtem", {}), ("ltmp", {}), ("ltmp", {"first": "prune"}),
    ("algm", {"stage": "local"}), ("algm", {"stage": "global"}), ("cts", {}), ("tomesd", {}),
]  # fmt: skip


def run(name: str, tensors: dict[str, Any], backend: str, options: dict[str, Any]) -> Any:
    given = call(methods.get(name), 37, 25, 1, 3)
    weights = {"weights": given["weights"]} if "weights" in given else {}
    return apply_method(name, tensors, keep=25, backend=backend, block=7, **weights, **options)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_half_precision_tokens_stay_half_and_choose_alike(
    name: str, options: dict[str, Any], backend: str
) -> None:
    tensors = call(methods.get(name), 37, 25, 1, 3)["tensors"]
    half = tensors | {"x": tensors["x"].astype(np.float16)}
    wide = tensors | {"x": half["x"].astype(np.float32)}
    found, wanted = (run(name, given, backend, options) for given in (half, wide))
    assert found["tokens"].dtype == np.float16
    np.testing.assert_array_equal(found["assign"], wanted["assign"])
    np.testing.assert_allclose(found["tokens"], wanted["tokens"], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_images_of_a_batch_do_not_meet(name: str, options: dict[str, Any], backend: str) -> None:
    tensors = call(methods.get(name), 37, 25, 1, 3)["tensors"]
    order = [2, 0, 1]
    moved = {key: value if key == "grid" else value[order] for key, value in tensors.items()}
    found, permuted = (run(name, given, backend, options) for given in (tensors, moved))
    for key in ("tokens", "size", "assign", "index"):
        np.testing.assert_array_equal(found[key][order], permuted[key])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_options_are_read_from_text(name: str, options: dict[str, Any]) -> None:
    text = {key: str(value) for key, value in options.items()}
    assert methods.get(name).from_options(text) == methods.get(name).from_options(options)
