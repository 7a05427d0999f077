"""The kernels of quick deployable plugins: one launch each, sizes and lists written into the source, pointers for parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.files import atomic
from tokenrt.plugins.toolchain import compiler, device

TYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {"float32": ("float", 4), "float16": ("__half", 2), "bfloat16": ("__nv_bfloat16", 2)}
)
"""Element types -> their name in CUDA C++ and their bytes."""

MOST_TOKENS, MOST_WIDTH, MOST_SELECTED, MOST_SOURCES = 16384, 8192, 8192, 1024
"""The limits of once.cuh and common.cuh."""

BATCH = 0
"""Stands for the batch in a grid; the only size that an engine may leave open."""

VECTORS_OF_A_WARP = 2 * 32
"""16-byte vectors, or single elements, that a warp of TokenCombine takes; it has 8 warps a block."""


@dataclass(frozen=True)
class Kernel:
    """A kernel for one node: its name, its source, and how it is launched. `grid` holds BATCH once."""

    name: str
    source: str
    grid: tuple[int, int, int]
    threads: int


Shape = Sequence[int]


def token_select(kinds: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kernel:
    """TokenSelect. Shapes: score [B,N]."""
    tokens, keep, protect, order = (
        shapes[0][1],
        attributes["keep"][0],
        attributes["protect"][0],
        attributes["order"],
    )
    cuda, _ = _typed("TokenSelect", kinds[0])
    _within("TokenSelect", "N", tokens, MOST_TOKENS)
    if not 0 <= protect < keep <= tokens:
        raise UnsupportedError(f"TokenSelect: protect {protect} and keep {keep} do not fit {tokens} tokens")
    kept = f"__shared__ int kept[{keep}];" if order else "int* const kept = nullptr;"
    if order:
        _within("TokenSelect by score", "K", keep, MOST_SELECTED)
    body = f"""\
    const std::int64_t image = blockIdx.x;
    {kept}
    once::select<{order}>(score + image * {tokens}, index + image * {keep}, kept, {tokens}, {keep}, {protect});"""
    pointers = (f"const {cuda}* __restrict__ score", "std::int64_t* __restrict__ index")
    return Kernel("tokenrt_select", _source("tokenrt_select", 256, pointers, body), (BATCH, 1, 1), 256)


def token_match(kinds: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kernel:
    """TokenMatch. Shapes: metric [B,N,D]."""
    body, pointers, listed = _pairing("TokenMatch", kinds[0], shapes[0], attributes)
    return Kernel("tokenrt_match", _source("tokenrt_match", 256, pointers, body, listed), (BATCH, 1, 1), 256)


def _pairing(
    name: str, kind: str, metric: Shape, attributes: Mapping[str, Any]
) -> tuple[str, tuple[str, ...], str]:
    """The body that matches an image by its metric [B,N,D], its pointers, and the lists as constants of the kernel."""
    (_, tokens, width), lists = metric, [attributes[name] for name in ("sources", "destinations", "others")]
    sizes, remove, order = [len(listed) for listed in lists], attributes["remove"][0], attributes["order"]
    cuda, size = _typed(name, kind)
    _within(name, "N", tokens, MOST_TOKENS)
    _within(name, "D", width, MOST_WIDTH)
    _within(name, "S, the number of sources,", sizes[0], MOST_SOURCES)
    if sorted(place for listed in lists for place in listed) != list(range(tokens)) or not sizes[1]:
        raise UnsupportedError(
            f"{name}: sources, destinations and others must name each of the {tokens} positions once"
        )
    if not 1 <= remove <= sizes[0] or attributes["keep"][0] != tokens - remove:
        raise UnsupportedError(
            f"{name}: keep {attributes['keep'][0]} and remove {remove} do not fit {tokens} tokens"
        )
    listed = "".join(
        f"static __device__ const int {name}[] = {{{', '.join(map(str, places)) or '0'}}};\n"
        for name, places in zip(("sources", "destinations", "others"), lists, strict=True)
    )
    whole = "true" if width * size % 16 == 0 else "false"
    numbers = ", ".join(map(str, (1, tokens, width, *sizes, remove, order)))
    body = f"""\
    __shared__ once::MatchShared<{cuda}> shared;
    const std::int64_t image = blockIdx.x;
    const MatchShape shape{{{numbers}}};
    value += image * {sizes[0]};
    keep += image * {tokens - remove};
    source += image * {remove};
    destination += image * {remove};
    once::match<{whole}>(shared, metric + image * {tokens * width}, sources, destinations, others, value, keep,
                         source, destination, shape);"""
    pointers = (
        f"const {cuda}* __restrict__ metric", "float* __restrict__ value", "std::int64_t* __restrict__ keep",
        "std::int64_t* __restrict__ source", "std::int64_t* __restrict__ destination",
    )  # fmt: skip
    return body, pointers, listed


def token_merge(kinds: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kernel:
    """TokenMerge. Shapes: tokens [B,N,C], size [B,N,1], metric [B,N,D]."""
    (_, tokens, channels), keep = shapes[0], attributes["keep"][0]
    body, (metric, *outputs), listed = _pairing("TokenMerge", kinds[2], shapes[2], attributes)
    _within("TokenMerge", "C", channels, MOST_WIDTH)
    cuda, size = _typed("TokenMerge", kinds[0])
    body += f"""
    once::merge<{_vector(channels, size)}>(tokens + image * {tokens * channels}, size + image * {tokens}, keep, source,
                   destination, merged + image * {keep * channels}, total + image * {keep}, {channels}, shape);"""
    pointers = (
        f"const {cuda}* __restrict__ tokens", "const float* __restrict__ size", metric, f"{cuda}* __restrict__ merged",
        "float* __restrict__ total", *outputs,
    )  # fmt: skip
    return Kernel("tokenrt_merge", _source("tokenrt_merge", 256, pointers, body, listed), (BATCH, 1, 1), 256)


def token_combine(kinds: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kernel:
    """TokenCombine. Shapes: tokens [B,N,C], size [B,N,1], keep [B,K], source [B,R], destination [B,R]."""
    (_, tokens, width), keep, remove = shapes[0], shapes[2][1], shapes[3][1]
    _within("TokenCombine", "N", tokens, MOST_TOKENS)
    _within("TokenCombine", "C", width, MOST_WIDTH)
    _within("TokenCombine", "K", keep, tokens)
    cuda, size = _typed("TokenCombine", kinds[0])
    vector = _vector(width, size)
    body = f"""\
    const CombineShape shape{{1, {tokens}, {width}, {keep}, {remove}}};
    combine::merge_block<{vector}, CombinePolicy>(tokens, size, keep, source, destination, merged, total, shape);"""
    pointers = (
        f"const {cuda}* __restrict__ tokens", "const float* __restrict__ size", "const std::int64_t* __restrict__ keep",
        "const std::int64_t* __restrict__ source", "const std::int64_t* __restrict__ destination",
        f"{cuda}* __restrict__ merged", "float* __restrict__ total",
    )  # fmt: skip
    grid = (-(-keep // 8), -(-width // (VECTORS_OF_A_WARP * vector)), BATCH)
    return Kernel("tokenrt_combine", _source("tokenrt_combine", 256, pointers, body), grid, 256)


def _typed(name: str, kind: str) -> tuple[str, int]:
    """What TYPES says of an element type. Raises: UnsupportedError for another one."""
    if kind not in TYPES:
        raise UnsupportedError(f"{name} takes {', '.join(TYPES)}, not {kind}")
    return TYPES[kind]


def _vector(width: int, size: int) -> int:
    """Elements of so many bytes that a lane loads at a time."""
    return 16 // size if width * size % 16 == 0 else 1


KERNELS: Mapping[str, Callable[[Sequence[str], Sequence[Shape], Mapping[str, Any]], Kernel]] = (
    MappingProxyType(
        {
            "TokenSelect": token_select,
            "TokenMatch": token_match,
            "TokenCombine": token_combine,
            "TokenMerge": token_merge,
        }
    )
)
"""Operators that have a quick deployable plugin -> the kernel for types and shapes of inputs, and attributes."""


def kernel(name: str, kinds: Sequence[str], shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Kernel:
    """Return the kernel for a node. kinds, shapes: those of the operator's inputs; the batch may be anything.

    Raises: UnsupportedError for a type, an open size or a number that it cannot serve.
    """
    for shape in shapes:
        if any(size < 1 for size in shape[1:]):
            raise UnsupportedError(
                f"{name} needs every size but the batch when the engine is built, and got {list(shape)}; give the model "
                "static sizes, or use the plugin library: tokenrt plugins build"
            )
    return KERNELS[name](kinds, shapes, attributes)


def written(made: Kernel) -> Path:
    """Return the kernel's source as a file of the cache."""
    folder = compiler.cache() / "quick"
    path = folder / f"{made.name}-{hashlib.sha256(made.source.encode()).hexdigest()[:24]}.cu"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"cannot make the cache folder {folder}: {error}; set TOKENRT_CACHE to one"
            ) from error
        with atomic(path) as temporary:
            temporary.write_text(made.source, encoding="utf-8")
    return path


def ptx(made: Kernel, arch: int) -> str:
    """Return the kernel compiled to PTX for one architecture, which later GPUs compile on loading.

    Raises: UnsupportedError without nvcc; BuildError where it refuses, or where a parameter is no pointer.
    """
    text = device.ptx(arch, written(made)).read_text(encoding="utf-8")
    (entry,) = device.entries(text)
    if entry.symbol != made.name or set(entry.parameters) != {8} or entry.threads != made.threads:
        raise BuildError(f"the PTX of {made.name} declares {entry}, which is not what it is launched as")
    return text


def _source(name: str, threads: int, pointers: Sequence[str], body: str, before: str = "") -> str:
    parameters = ",\n    ".join(pointers)
    return f"""\
#include <once.cuh>

using namespace tokenrt;

{before}extern "C" __global__ void __launch_bounds__({threads}) {name}(
    {parameters}) {{
{body}
}}
"""


def _within(name: str, what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UnsupportedError(
            f"the quick deployable plugin of {name} takes {what} up to {most}, not {value}; use the plugin library, which "
            "has no such limit or a larger one: tokenrt plugins build"
        )
