"""Quick deployable plugins: their kernels on the host, their PTX, and how they register with a strict stand-in."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers import fake_tensorrt
from tokenrt.errors import DependencyError, TokenrtError, UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins import quick, quick_kernels
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import TYPES
from tokenrt.plugins.toolchain import nvcc
from tokenrt.plugins.toolchain.compiler import COMPILERS, compiled

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TAIL = """
template <typename... P, std::size_t... I>
int started(void (*kernel)(P...), void** pointers, dim3 grid, unsigned threads, std::index_sequence<I...>) {
    return tokenrt::launch(kernel, grid, threads, nullptr, static_cast<P>(pointers[I])...);
}
template <typename... P>
int started(void (*kernel)(P...), void** pointers, dim3 grid, unsigned threads) {
    return started(kernel, pointers, grid, threads, std::index_sequence_for<P...>());
}
extern "C" int start(void** pointers, unsigned x, unsigned y, unsigned z, unsigned threads) {
    return started(KERNEL, pointers, dim3(x, y, z), threads);
}
"""
"""Appended to a kernel's source for the CPU: what TensorRT does, which knows pointers, a grid and threads alone."""


def run(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], outputs: Sequence[Any]) -> None:
    """Run the kernel on the CPU into `outputs`."""
    settled = OPERATORS[name].settle(attributes)
    shapes = [array.shape for array in inputs]
    made = quick_kernels.kernel(name, [array.dtype.name for array in inputs], shapes, settled)
    source = quick_kernels.written(
        quick_kernels.Kernel(
            made.name, made.source + TAIL.replace("KERNEL", made.name), made.grid, made.threads
        )
    )
    extra = os.environ.get(kernels.EXTRA_FLAGS, "").split()
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # a sanitizer's runtime is for the kernel, not for its compiler
        patch.delenv("LD_PRELOAD", raising=False)
        built = compiled(source, (*kernels.FLAGS, *extra, "-fPIC", "-shared", "-x", "c++"), "quick.so")
    library = ctypes.CDLL(str(built))
    batch = len(inputs[0])
    grid = [batch if size == quick_kernels.BATCH else size for size in made.grid]
    pointers = [array.ctypes.data for array in (*inputs, *outputs)]
    assert library.start((ctypes.c_void_p * len(pointers))(*pointers), *grid, made.threads) == 0


def same(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    for actual, exact in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(actual, exact)


def score(tokens: int, kind: str) -> Any:
    made = np.round(np.random.default_rng(tokens).standard_normal((3, tokens)), 1).astype(KINDS[kind])
    made[0, ::5], made[1, 1::4] = np.nan, np.inf
    return kernels.ready(made)


on_cpu = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler on PATH")


@on_cpu
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("tokens", "keep", "kind"), [(1, 1, "float32"), (197, 139, "float16"), (577, 300, "float32")]
)
def test_selection_in_one_launch_is_the_reference(tokens: int, keep: int, kind: str, order: int) -> None:
    attributes = {"keep": keep, "protect": min(1, keep - 1), "order": order}
    given, index = score(tokens, kind), kernels.aligned((3, keep), np.int64)
    run("TokenSelect", [given], attributes, [index])
    same([index], expect("TokenSelect", [given.astype(np.float64)], attributes))


@on_cpu
@pytest.mark.parametrize(
    ("tokens", "width", "protect", "remove", "order", "kind"),
    [
        (2, 8, 0, 1, 0, "float32"),
        (197, 64, 1, 16, 0, "float16"),
        (197, 20, 5, 96, 1, "bfloat16"),
        (577, 32, 1, 100, 0, "float32"),
    ],
)
def test_matching_in_one_launch_is_that_of_three(
    tokens: int, width: int, protect: int, remove: int, order: int, kind: str
) -> None:
    metric = kernels.ready(np.random.default_rng(0).standard_normal((2, tokens, width)).astype(KINDS[kind]))
    attributes = alternate(tokens, protect, remove, order)
    counts = len(attributes["sources"]), tokens - remove, remove, remove
    outputs = [
        kernels.aligned((2, count), np.int64 if place else np.float32) for place, count in enumerate(counts)
    ]
    run("TokenMatch", [metric], attributes, outputs)
    same(outputs, kernels.run("TokenMatch", [metric], OPERATORS["TokenMatch"].settle(attributes)))


@on_cpu
@pytest.mark.parametrize(("width", "kind"), [(768, "float16"), (33, "float32")])
def test_merging_is_that_of_the_kernel(width: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(33) for _ in range(2)])
    inputs = [
        rng.standard_normal((2, 33, width)).astype(KINDS[kind]),
        rng.integers(1, 6, (2, 33, 1)).astype(np.float32),
        order[:, :21], order[:, 21:], rng.integers(0, 21, (2, 12)),
    ]  # fmt: skip
    inputs = [kernels.ready(array) for array in inputs]
    outputs = [kernels.aligned((2, 21, width), KINDS[kind]), kernels.aligned((2, 21, 1), np.float32)]
    attributes = {"type": TYPES[kind]}
    run("TokenCombine", inputs, attributes, outputs)
    same(outputs, kernels.run("TokenCombine", inputs, attributes))


@on_cpu
@pytest.mark.parametrize(
    ("width", "kind", "order"), [(768, "float16", 0), (33, "float32", 1), (24, "bfloat16", 0)]
)
def test_matching_and_merging_in_one_launch_are_those_of_two(width: int, kind: str, order: int) -> None:
    rng = np.random.default_rng(0)
    shapes = (2, 99, width), (2, 99, 1), (2, 99, 20)
    tokens, size, metric = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    inputs = [kernels.ready(array) for array in (tokens.astype(KINDS[kind]), np.abs(size), metric)]
    attributes = OPERATORS["TokenMerge"].settle({**alternate(99, 3, 31, order), "type": TYPES[kind]})
    wanted = kernels.run("TokenMerge", inputs, attributes)
    outputs = [kernels.aligned(array.shape, array.dtype) for array in wanted]
    run("TokenMerge", inputs, attributes, outputs)
    same(outputs, wanted)


# Registration --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch)
    assert quick.register() == ("TokenSelect", "TokenMatch", "TokenCombine", "TokenMerge")


def give(monkeypatch: pytest.MonkeyPatch, version: str = "10.9.0.34") -> Any:
    tensorrt, plugin = fake_tensorrt.module(version)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    return plugin


def settled(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as TensorRT hands them on: lists of numbers as arrays."""
    return {
        key: np.array(value, np.int32) if isinstance(value, list) else value
        for key, value in OPERATORS[name].settle(attributes).items()
    }


MATCH = {**alternate(197, 1, 16, 0)}
NODES: dict[str, tuple[list[tuple[list[int], str]], dict[str, Any], list[tuple[list[int | None], str]]]] = {
    "TokenSelect": (
        [([-1, 197], "FLOAT")],
        {"keep": 139, "protect": 1, "order": 0},
        [([None, 139], "INT64")],
    ),
    "TokenMatch": (
        [([-1, 197, 64], "HALF")],
        MATCH,
        [([None, 98], "FLOAT"), ([None, 181], "INT64"), ([None, 16], "INT64"), ([None, 16], "INT64")],
    ),
    "TokenCombine": (
        [
            ([-1, 197, 768], "HALF"), ([-1, 197, 1], "FLOAT"), ([-1, 181], "INT64"),
            ([-1, 16], "INT64"), ([-1, 16], "INT64"),
        ],
        {"type": 10},
        [([None, 181, 768], "HALF"), ([None, 181, 1], "FLOAT")],
    ),
    "TokenMerge": (
        [([-1, 197, 768], "HALF"), ([-1, 197, 1], "FLOAT"), ([-1, 197, 64], "FLOAT")],
        {**MATCH, "type": 10},
        [
            ([None, 181, 768], "HALF"), ([None, 181, 1], "FLOAT"),
            ([None, 98], "FLOAT"), ([None, 181], "INT64"), ([None, 16], "INT64"), ([None, 16], "INT64"),
        ],
    ),
}  # fmt: skip
"""Operator -> inputs, attributes, and the outputs that follow; None is the batch, open until the engine runs."""


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", sorted(NODES))
def test_an_engine_gets_shapes_ptx_and_its_launch(name: str) -> None:
    try:
        nvcc.toolkit()
    except TokenrtError as missing:
        pytest.skip(str(missing))
    inputs, attributes, wanted = NODES[name]
    outputs, (kernel, ptx, launch, extra) = fake_tensorrt.engine(
        f"tokenrt::{name}", inputs, settled(name, attributes)
    )
    assert [([size.value for size in output.shape_expr.sizes], output.dtype) for output in outputs] == wanted
    (entry,) = quick_kernels.device.entries(ptx)
    assert entry.symbol == kernel
    assert entry.parameters == (8,) * (len(inputs) + len(outputs))
    assert extra.items == []
    assert (launch.block_x.value, launch.block_y.value, launch.shared_mem.value) == (entry.threads, 1, 0)
    assert [launch.grid_x.value, launch.grid_y.value, launch.grid_z.value].count(None) == 1
    assert ".target sm_75" in ptx


def test_plugins_are_those_of_the_operators() -> None:
    assert quick.SHAPES.keys() == quick_kernels.KERNELS.keys() <= OPERATORS.keys()
    assert NODES.keys() == quick_kernels.KERNELS.keys()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "place", "shape", "changed", "told"),
    [
        ("TokenSelect", 0, [-1, -1], {}, r"needs every size but the batch .* \[-1, -1\].*plugins build"),
        ("TokenSelect", 0, [4, 20000], {}, "takes N up to 16384, not 20000"),
        ("TokenSelect", 0, [4, 100], {}, "keep 139 do not fit 100 tokens"),
        ("TokenMatch", 0, [4, 196, 64], {}, "name each of the 196 positions once"),
        ("TokenMatch", 0, [4, 197, 64], {"keep": 180}, "keep 180 and remove 16 do not fit"),
        (
            "TokenMatch",
            0,
            [4, 4097, 64],
            alternate(4097, 1, 16, 0),
            "number of sources, up to 1024, not 2048",
        ),
        ("TokenCombine", 0, [4, 197, 9000], {}, "takes C up to 8192"),
        ("TokenMerge", 0, [4, 197, 9000], {}, "takes C up to 8192"),
        ("TokenMerge", 2, [4, 196, 64], {}, "name each of the 196 positions once"),
    ],
)
def test_what_they_cannot_serve_is_refused(
    name: str, place: int, shape: list[int], changed: dict[str, Any], told: str
) -> None:
    inputs, attributes, _ = NODES[name]
    inputs = [(shape if i == place else given, kind) for i, (given, kind) in enumerate(inputs)]
    with pytest.raises(UnsupportedError, match=told):
        fake_tensorrt.engine(f"tokenrt::{name}", inputs, settled(name, {**attributes, **changed}))


@pytest.mark.usefixtures("registered")
def test_other_types_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="TokenSelect takes float32, float16, bfloat16, not INT32"):
        fake_tensorrt.engine(
            "tokenrt::TokenSelect", [([1, 197], "INT32")], settled("TokenSelect", NODES["TokenSelect"][1])
        )


@pytest.mark.parametrize(
    ("capability", "found"),
    [(89, 89), (88, 87), (130, 121), (None, quick.ARCHITECTURE), (70, quick.ARCHITECTURE)],
)
def test_the_ptx_is_that_of_this_machines_gpu(
    capability: int | None, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU newer than nvcc runs the PTX of the newest that nvcc knows."""

    def ask(to: Any, what: int, device: Any) -> int:
        assert capability is not None
        to._obj.value = {75: capability // 10, 76: capability % 10}[what]
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 100 if capability is None else 0,
        cuDeviceGet=lambda to, number: number,
        cuDeviceGetAttribute=ask,
    )
    monkeypatch.setattr(quick.ctypes, "CDLL", lambda name: driver)
    toolkit = SimpleNamespace(architectures=nvcc.ARCHITECTURES)
    monkeypatch.setattr(quick.nvcc, "toolkit", lambda: toolkit)
    assert quick.here() == found


def test_without_tensorrt_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        DependencyError, match=r"quick deployable plugins needs the package 'tensorrt': pip install"
    ):
        quick.register()


def test_an_older_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, "10.3.0.26")
    with pytest.raises(
        UnsupportedError, match=r"need TensorRT 10\.9 or later, and this is 10\.3\.0\.26; use the plugin"
    ):
        quick.register()
    plugin = give(monkeypatch)
    del plugin.aot_impl
    with pytest.raises(UnsupportedError, match="installed without them"):
        quick.register()
