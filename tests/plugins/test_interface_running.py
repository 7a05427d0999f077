"""Each plugin as an engine sees it, with its kernels on the CPU: running, workspace, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers import built
from tests.plugins.helpers.interface import (
    CONTRACTS,
    KINDS,
    UNITS,
    inputs_of,
    made,
    needs_compiler,
    types_of,
)
from tests.plugins.helpers.node import FLOAT, Node, together, told
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import KERNELS

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def path() -> Path:
    return built.host_library()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_every_plugin_runs_its_kernel(name: str, kind: str, path: Path) -> None:
    inputs, attributes = inputs_of(name, kind)
    node = made(path, name, kind)
    shapes, types = [item.shape for item in inputs], types_of(name, kind)[0]
    assert node.configure(shapes, types), told()
    context = node.attached()
    assert context is not None, told()
    node.close()  # an engine's copy does not live on the builder's
    assert context.shape_change(shapes, types), told()
    kinds = [KINDS.get(kind if t.type == "own" else t.type, np.int64) for t in CONTRACTS[name].outputs]
    wide = [item.astype(np.float64) if item.dtype.kind not in "iu" else item for item in inputs]
    copy = context.clone()
    assert copy is not None
    for one in (context, copy):
        found = one.run(inputs, kinds)
        assert found is not None, told()
        for actual, wanted in zip(found, expect(name, wide, attributes), strict=True):
            assert actual.shape == wanted.shape
            if wanted.dtype.kind == "i":
                np.testing.assert_array_equal(actual, wanted)
            else:
                unit = UNITS[kind] if name in ("TokenCombine", "TokenMerge", "TokenRestore") else 2.0**-22
                np.testing.assert_allclose(actual.astype(np.float64), wanted, atol=4 * unit, rtol=4 * unit)


@pytest.mark.parametrize(
    "bias", [(1,), (17,), (1, 17), (2, 1, 1), (3, 1, 1, 17), (3, 2, 3, 17), (1, 1, 3, 1)], ids=str
)
def test_the_bias_of_a_score_is_broadcast(bias: tuple[int, ...], path: Path) -> None:
    queries, keys, _ = inputs_of("TokenScore")[0]
    offset = np.random.default_rng(0).standard_normal(bias).astype(np.float32)
    fields = {"scale": 0.25, "first_row": [2], "end_row": [5]}
    node = Node.create(path, "TokenScore", fields)
    assert node is not None
    found = node.run([queries, keys, offset], [np.float32])
    assert found is not None, told()
    (wanted,) = expect("TokenScore", [queries, keys, offset], fields)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)


def test_a_bias_that_cannot_be_broadcast_is_refused(path: Path) -> None:
    queries, keys, _ = inputs_of("TokenScore")[0]
    node = made(path, "TokenScore")
    assert node.run([queries, keys, np.zeros((1, 1, 1, 5), np.float32)], [np.float32]) is None
    assert "axis 3 of input 'bias' is 5, it must be 1 or 17" in told()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_misaligned_pointer_is_an_error(name: str, path: Path) -> None:
    inputs, _ = inputs_of(name)
    context = made(path, name).attached()
    assert context is not None
    kinds = [KINDS.get(tensor.type, np.int64) for tensor in CONTRACTS[name].outputs]
    assert context.run(inputs, kinds, shift=1) is None
    assert "CUDA error 716: misaligned address" in told()


MATCHED = [np.float32, np.int64, np.int64, np.int64]


def test_a_plugin_that_no_context_was_attached_to_gets_its_lists_from_the_change_of_shapes(
    path: Path,
) -> None:
    """What a builder that times it may do: nothing says that it attaches it first."""
    inputs, attributes = inputs_of("TokenMatch")
    node = made(path, "TokenMatch")
    assert node.run(inputs, MATCHED) is None  # against the contract of TensorRT
    assert "CUDA error 600" in told()
    assert node.shape_change([item.shape for item in inputs], types_of("TokenMatch", "float32")[0]), told()
    for one in (node, node.clone()):
        assert one is not None
        found = one.run(inputs, MATCHED)
        assert found is not None, told()
        np.testing.assert_array_equal(found[1], expect("TokenMatch", inputs, attributes)[1])


def test_lists_are_on_the_device_once_a_context_is_attached(path: Path) -> None:
    inputs, _ = inputs_of("TokenMatch")
    node, kinds = made(path, "TokenMatch"), MATCHED
    first, second = node.attached(), node.attached()
    assert first is not None
    assert second is not None
    first.close()
    assert second.run(inputs, kinds) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_workspace_is_what_the_launcher_asks_for(name: str, kind: str, path: Path) -> None:
    inputs, attributes = inputs_of(name, kind)
    asked = sum(space.nbytes for space in kernels._workspace(KERNELS[name](*inputs, **attributes)))
    node, types = made(path, name, kind), types_of(name, kind)[0]
    shapes = [item.shape for item in inputs]
    assert node.workspace(shapes, types) == asked
    twice = [
        shape if tensor.shape == "*" else (2 * shape[0], *shape[1:])
        for shape, tensor in zip(shapes, CONTRACTS[name].inputs, strict=True)
    ]
    assert node.workspace(twice, types) == 2 * asked


@pytest.mark.parametrize("name", CONTRACTS)
def test_two_contexts_run_on_two_threads_at_once(name: str, path: Path) -> None:
    """Beside them the library is asked for its creators, copies are made and destroyed."""
    inputs, attributes = inputs_of(name)
    node = made(path, name)
    first, second = node.attached(), node.attached()
    assert first is not None
    assert second is not None
    outputs = CONTRACTS[name].outputs
    kinds = [np.int64 if tensor.type == "int64" else np.float32 for tensor in outputs]
    for found in together(first, second, inputs, kinds, 3):
        wide = [item.astype(np.float64) if item.dtype.kind not in "iu" else item for item in inputs]
        for actual, wanted in zip(found, expect(name, wide, attributes), strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONTRACTS)
def test_no_images_are_no_work_and_no_error(name: str, path: Path) -> None:
    """An engine whose profile begins at 0 asks for it."""
    inputs, _ = inputs_of(name)
    none = [
        item if tensor.shape == "*" else item[:0]
        for item, tensor in zip(inputs, CONTRACTS[name].inputs, strict=True)
    ]
    context = made(path, name).attached()
    assert context is not None
    types, shapes = types_of(name, "float32")[0], [item.shape for item in none]
    assert context.configure(shapes, types), told()
    assert context.shape_change(shapes, types), told()
    kinds = [KINDS.get(tensor.type, np.int64) for tensor in CONTRACTS[name].outputs]
    kinds = [
        np.float32 if tensor.type == "own" else kind
        for kind, tensor in zip(kinds, CONTRACTS[name].outputs, strict=True)
    ]
    found = context.run(none, kinds)
    assert found is not None, told()
    assert all(output.shape[0] == 0 for output in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_one_plugin_runs_every_batch_of_a_profile_in_the_workspace_of_its_largest(
    name: str, kind: str, path: Path
) -> None:
    """min 0, opt 1, max 2 images; axes of -1 while it is built."""
    inputs, attributes = inputs_of(name, kind)
    fixed = [item.shape[0] == 1 for item in inputs]
    sizes = [
        [item.shape if still else (batch, *item.shape[1:]) for item, still in zip(inputs, fixed, strict=True)]
        for batch in (-1, 0, 1, 2)
    ]
    node, types = made(path, name, kind), types_of(name, kind)[0]
    assert node.profile(sizes, types), told()
    space = node.profile_workspace(sizes, types)
    assert space == node.workspace(sizes[3], types) >= node.workspace(sizes[2], types)
    context = node.attached()
    assert context is not None
    kinds = [KINDS.get(kind if t.type == "own" else t.type, np.int64) for t in CONTRACTS[name].outputs]
    for batch in (0, 1, 2, 1):
        some = [item if still else item[:batch] for item, still in zip(inputs, fixed, strict=True)]
        assert context.shape_change([item.shape for item in some], types), told()
        found = context.run(some, kinds, space=space)
        assert found is not None, told()
        if batch:
            wide = [item.astype(np.float64) if item.dtype.kind not in "iu" else item for item in some]
            for actual, wanted in zip(found, expect(name, wide, attributes), strict=True):
                assert actual.shape == wanted.shape
                if wanted.dtype.kind == "i":
                    np.testing.assert_array_equal(actual, wanted)


def test_a_profile_whose_largest_shape_is_beyond_the_limits_is_refused(path: Path) -> None:
    sizes = [[[batch, 17]] for batch in (-1, 1, 2, 1025)]
    assert not made(path, "TokenSelect").profile(sizes, [FLOAT])
    assert "axis 0 of input 'score' is 1025, the kernels take up to 1024" in told()


def test_work_beyond_what_one_launch_should_hold_is_refused(path: Path) -> None:
    fields = {"keep": [8192], "remove": [8192], "linkage": 0}
    node = Node.create(path, "TokenCluster", fields)
    assert node is not None
    assert node.configure([[1, 16384, 64]], [FLOAT]), told()
    node = Node.create(path, "TokenCluster", {"keep": [8191], "remove": [8193], "linkage": 0})
    assert node is not None
    assert not node.configure([[1, 16384, 64]], [FLOAT])
    assert "TokenCluster: remove x N is 134234112, the kernels take up to 134217728" in told()


def test_a_workspace_follows_from_the_fields(path: Path) -> None:
    by_position = made(path, "TokenSelect")
    assert by_position.workspace([[4, 17]], [FLOAT]) == 0
    by_score = Node.create(path, "TokenSelect", {"keep": [12], "protect": [0], "order": 1})
    assert by_score is not None
    assert by_score.workspace([[4, 17]], [FLOAT]) == 4 * 12 * 4
    assert made(path, "TokenMatch").workspace([[4, 17, 8]], [FLOAT]) == 2 * 4 * 4 * 8
