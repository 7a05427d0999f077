"""Where the kernels find and leave their memory: parts of larger tensors, wide rows, sizes beyond what is held at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import cases
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins.contracts import FREE, OWN, contracts
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.recorder import like, recorded

pytestmark = needs_compiler


def shifted(array: Any) -> Any:
    """The same numbers in memory that begins an element behind 16 bytes, as a part of a larger tensor may."""
    size = array.dtype.itemsize
    held = kernels.aligned((array.nbytes + size,), np.uint8)[size:].view(array.dtype)
    held[...] = array.reshape(-1)
    return held.reshape(array.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(contracts()))
def test_a_tensor_may_begin_on_any_element_of_a_larger_one(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, attributes = cases()[name]
    own = [
        np.asarray(item).astype(KINDS[kind]) if tensor.type in (OWN, FREE) else np.asarray(item)
        for item, tensor in zip(inputs, contracts()[name].inputs, strict=True)
    ]
    wanted = run(name, own, attributes)
    monkeypatch.setattr(kernels, "ready", lambda array: shifted(np.ascontiguousarray(array)))
    fresh = kernels.unwritten
    monkeypatch.setattr(
        kernels,
        "unwritten",
        lambda shape, of: fresh(shape, of) if of is np.uint8 else shifted(fresh(shape, of)),
    )
    for found, whole in zip(run(name, own, attributes), wanted, strict=True):
        assert found.ctypes.data % 16 != 0
        if whole.dtype.kind == "i":
            np.testing.assert_array_equal(found, whole)
        else:  # products of a row are added in another order
            np.testing.assert_allclose(
                found.astype(np.float64), whole.astype(np.float64), rtol=1e-5, atol=1e-5
            )


WIDE = 8192 + 8
"""Channels: more than the block that holds a row in shared memory takes."""


@pytest.mark.parametrize("width", [5120, 8192])
@pytest.mark.parametrize("name", ["TokenGreedySelect", "TokenCoverSelect"])
def test_a_choice_takes_the_width_of_large_language_models(name: str, width: int) -> None:
    metric = (random((1, 12, 3)) @ random((3, width))).astype(np.float16)
    importance = np.linspace(1, 2, 12, dtype=np.float32)[
        None
    ]  # two tokens that cover each other alone would tie
    attributes = {"keep": 5, "protect": 1, "order": 1, "power": 1.0, "mix": 0.0}
    if name == "TokenGreedySelect":
        attributes |= {"objective": 0, "seed": 2}
    (found,) = run(name, [metric, importance], attributes)
    (wanted,) = expect(name, wide([metric, importance]), attributes)
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run(name, [random((1, 12, WIDE), "float16"), importance], attributes)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("width", [1024, 1025, 8192])
def test_a_score_takes_wide_heads(width: int, rows: int) -> None:
    queries, keys = (random((1, 2, 6, width), seed=seed) / 8 for seed in (0, 1))
    attributes = {"scale": 0.01, "first_row": 0, "end_row": rows}
    bias = np.zeros((1, 1, 1, 1), np.float32)
    (found,) = run("TokenScore", [queries, keys, bias], attributes)
    np.testing.assert_allclose(
        found, expect("TokenScore", wide([queries, keys, bias]), attributes)[0], rtol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    ["TokenCluster", "TokenCombine", "TokenMatch", "TokenMeans", "TokenMedoids", "TokenMerge", "TokenPeaks"],
)
def test_rows_that_no_block_holds_have_no_limit(name: str) -> None:
    inputs, attributes = cases()[name]
    inputs = [np.asarray(item) for item in inputs]
    inputs[0] = random((*inputs[0].shape[:2], WIDE))
    found = run(name, inputs, attributes)
    for actual, wanted in zip(found, expect(name, wide(inputs), attributes), strict=True):
        if actual.dtype.kind == "i":
            np.testing.assert_array_equal(actual, wanted)
        else:
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_a_row_that_31_bits_cannot_count_is_refused() -> None:
    index = like((1, 16384), np.int64)
    assert recorded("TokenRestore", [like((1, 16384, 131071)), index], {}).launches
    with pytest.raises(UnsupportedError, match="error 1"):
        recorded("TokenRestore", [like((1, 16384, 131072)), index], {})


def test_a_clustering_takes_its_images_in_turns_beyond_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 tokens are 64 MiB and a little an image: 15 images at once."""
    attributes = {"keep": [2048], "remove": [2048], "linkage": 2}
    job = recorded("TokenCluster", [like((40, 4096, 64), "float16")], attributes)
    assert job.workspace <= 1 << 30
    assert [start.grid[2] for start in job.launches[::2]] == [15, 15, 10]
    assert [start.grid[0] for start in job.launches[1::2]] == [15, 15, 10]
    job = recorded(
        "TokenCluster", [like((1024, 16384, 64))], {**attributes, "keep": [8192], "remove": [8192]}
    )
    assert job.workspace <= (1 << 30) + (1 << 20)
    assert len(job.launches) == 2 * 1024


CHOICE = {"keep": [8192], "protect": [0], "order": 0, "power": 1.0, "mix": 0.0}
GREEDY = {**CHOICE, "objective": 0, "seed": 0}


@pytest.mark.parametrize(
    ("name", "shapes", "attributes", "fits"),
    [
        ("TokenGreedySelect", [(1, 16384, 64), (1, 16384)], GREEDY, True),
        ("TokenGreedySelect", [(1, 16384, 65), (1, 16384)], GREEDY, False),
        ("TokenGreedySelect", [(1, 4096, 8192), (1, 4096)], {**GREEDY, "keep": [4000]}, True),
        ("TokenGreedySelect", [(1, 4097, 8192), (1, 4097)], {**GREEDY, "keep": [4000]}, False),
        ("TokenCoverSelect", [(1, 4096, 8192), (1, 4096)], {**CHOICE, "keep": [4000]}, True),
        ("TokenCoverSelect", [(1, 16384, 64), (1, 16384)], CHOICE, True),
        ("TokenCoverSelect", [(1, 16384, 65), (1, 16384)], CHOICE, False),
        ("TokenCluster", [(1, 16384, 64)], {"keep": [8192], "remove": [8192], "linkage": 0}, True),
        ("TokenCluster", [(1, 16384, 64)], {"keep": [8191], "remove": [8193], "linkage": 0}, False),
    ],
)
def test_a_loop_that_would_run_for_seconds_is_refused(
    name: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], fits: bool
) -> None:
    """The kernel and what `lower` asks agree."""
    inputs = [like(shape) for shape in shapes]
    settled = OPERATORS[name].settle(attributes)
    assert (contracts()[name].misfit(shapes, settled) == "") == fits
    if fits:
        assert recorded(name, inputs, attributes).launches
    else:
        with pytest.raises(UnsupportedError, match="error 1"):
            recorded(name, inputs, attributes)
