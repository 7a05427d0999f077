"""The operators run by their CUDA kernels, compiled for the CPU: the host build behind the backend plugin-host."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops.contract import Array
from tokenrt.plugins.compiler import HERE, compiled

SOURCE = HERE / "simt" / "module.cpp"
FLAGS = ("-O2", "-g", "-fPIC", "-shared", "-pthread")
EXTRA_FLAGS = "TOKENRT_HOST_FLAGS"
"""Environment variable with further compiler flags, such as -fsanitize=address or -DSIMT_THREADS."""

ALIGNMENT = 16
TYPES: Mapping[str, int] = MappingProxyType({"float32": 1, "float16": 10, "bfloat16": 16})
"""Element types the kernels take -> their ONNX numbers."""

FAULTS: Mapping[int, str] = MappingProxyType(
    {
        1: "a size is outside of what the kernels take (up to 16384 tokens, width 4096, batch 1024, 256 heads), or the "
        "numbers do not fit together",
        9: "a launch with more threads or shared memory than a GPU has",
        716: "a tensor does not start on 16 bytes",
        801: "the kernels take float32, float16 and bfloat16 only",
    }
)
"""cudaError_t -> what it means here."""


@functools.cache
def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in "select match score greedy_select cover_select cluster peaks means medoids".split():
        getattr(library, f"host_token_{name}_workspace").restype = ctypes.c_size_t
    return library


def library() -> ctypes.CDLL:
    """Return the host build, compiled on first use (half a minute at most) and kept in the cache.

    Raises: UnsupportedError without a C++ compiler; BuildError when it refuses the kernels.
    """
    extra = tuple(os.environ.get(EXTRA_FLAGS, "").split())
    return _loaded(compiled(SOURCE, (*FLAGS, *extra), "host.so"))


def aligned(shape: Sequence[int], kind: Any) -> Array:
    """Return an array of zeros that starts on 16 bytes, as device memory does; NumPy promises less."""
    kind = np.dtype(kind)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    whole = np.zeros(count + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    result: Array = whole[start : start + count].view(kind).reshape(tuple(shape))
    return result


def ready(array: Any, kind: Any = None) -> Array:
    """Return the array contiguous, aligned and of type `kind`; a copy only where it is not."""
    given = np.ascontiguousarray(array, kind)
    if given.ctypes.data % ALIGNMENT == 0:
        return given
    copy = aligned(given.shape, given.dtype)
    copy[...] = given
    return copy


def _type_of(array: Array) -> int:
    return TYPES.get(array.dtype.name, 0)


def _workspace(count: int) -> Array:
    return aligned((count,), np.uint8)


def _call(name: str, *arguments: Any) -> None:
    """Call a launcher. Raises: UnsupportedError with what the error it returned means."""
    passed = [_passed(item) for item in arguments]
    _check(name, int(getattr(library(), f"host_{name}")(*passed)), arguments)


def _check(name: str, status: int, arguments: Sequence[Any]) -> None:
    if status:
        shapes = ", ".join(
            f"{item.dtype}{list(item.shape)}" for item in arguments if isinstance(item, np.ndarray)
        )
        reason = FAULTS.get(status, "an error without a name here")
        raise UnsupportedError(f"kernel {name} returned error {status}: {reason}; tensors: {shapes}")


def _passed(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return ctypes.c_void_p(item.ctypes.data if item.size else None)
    return ctypes.c_float(item) if isinstance(item, float) else ctypes.c_int(int(item))


def token_select(score: Array, keep: Sequence[int], protect: Sequence[int], order: int) -> tuple[Array]:
    """Run TokenSelect. Shapes: score [B,N] -> index [B,K]."""
    given = ready(score)
    (batch, tokens), count = given.shape, keep[0]
    index = aligned((batch, count), np.int64)
    needed = library().host_token_select_workspace(batch, count, order)
    space = _workspace(needed)
    _call(
        "token_select", _type_of(given), given, index, space, batch, tokens, count, protect[0], order
    )  # fmt: skip
    return (index,)


def token_group_select(
    score: Array, keep: Sequence[int], protect: Sequence[int], lengths: Sequence[int], quotas: Sequence[int]
) -> tuple[Array]:
    """Run TokenGroupSelect. Shapes: score [B,N] -> index [B,K]."""
    given, lists = ready(score), [ready(listed, np.int32) for listed in (lengths, quotas)]
    (batch, tokens), count, first = given.shape, keep[0], protect[0]
    if sum(lengths) != tokens - first or sum(quotas) != count - first:
        raise UnsupportedError(
            f"TokenGroupSelect: lengths add up to {sum(lengths)} and quotas to {sum(quotas)}, with {tokens - first} "
            f"unprotected tokens of which {count - first} stay"
        )
    index = aligned((batch, count), np.int64)
    shape = (batch, tokens, count, first, len(lists[0]))
    _call("token_group_select", _type_of(given), given, *lists, index, *shape)
    return (index,)


def _chosen(name: str, metric: Array, importance: Array, keep: int, *options: Any) -> tuple[Array]:
    """Run a kernel that chooses one by one. Shapes: metric [B,N,D], importance [B,N] -> index [B,K]."""
    given, rated = ready(metric), ready(importance, np.float32)
    batch, tokens, width = given.shape
    index = aligned((batch, keep), np.int64)
    space = _workspace(getattr(library(), f"host_{name}_workspace")(batch, tokens))
    _call(name, _type_of(given), given, rated, index, space, batch, tokens, width, keep, *options)
    return (index,)


def token_greedy_select(
    metric: Array,
    importance: Array,
    keep: Sequence[int],
    protect: Sequence[int],
    order: int,
    objective: int,
    power: float,
    mix: float,
    seed: int,
) -> tuple[Array]:
    """Run TokenGreedySelect."""
    options = (protect[0], order, objective, seed, float(power), float(mix))
    return _chosen("token_greedy_select", metric, importance, keep[0], *options)


def token_cover_select(
    metric: Array,
    importance: Array,
    keep: Sequence[int],
    protect: Sequence[int],
    order: int,
    power: float,
    mix: float,
) -> tuple[Array]:
    """Run TokenCoverSelect."""
    options = (protect[0], order, float(power), float(mix))
    return _chosen("token_cover_select", metric, importance, keep[0], *options)


def token_match(
    metric: Array,
    sources: Sequence[int],
    destinations: Sequence[int],
    others: Sequence[int],
    keep: Sequence[int],
    remove: Sequence[int],
    order: int,
) -> tuple[Array, Array, Array, Array]:
    """Run TokenMatch. Shapes: metric [B,N,D] -> value [B,S], keep [B,K], source [B,R], destination [B,R]."""
    given = ready(metric)
    batch, tokens, width = given.shape
    lists = [ready(listed, np.int32) for listed in (sources, destinations, others)]
    removed = remove[0]
    value = aligned((batch, len(sources)), np.float32)
    kept, source, destination = (aligned((batch, count), np.int64) for count in (keep[0], removed, removed))
    space = _workspace(library().host_token_match_workspace(batch, len(sources)))
    sizes = (batch, tokens, width, *(len(listed) for listed in lists), removed, order)
    _call("token_match", _type_of(given), given, *lists, value, kept, source, destination, space, *sizes)
    return value, kept, source, destination


def _clustered(name: str, metric: Array, keep: int, option: int) -> tuple[Array, Array]:
    """Run a clustering kernel. Shapes: metric [B,N,D] -> center [B,K], assign [B,N]."""
    given = ready(metric)
    batch, tokens, width = given.shape
    center, assign = aligned((batch, keep), np.int64), aligned((batch, tokens), np.int64)
    space = _workspace(getattr(library(), f"host_{name}_workspace")(batch, tokens))
    _call(name, _type_of(given), given, center, assign, space, batch, tokens, width, keep, option)
    return center, assign


def token_cluster(
    metric: Array, keep: Sequence[int], remove: Sequence[int], linkage: int
) -> tuple[Array, Array]:
    """Run TokenCluster; N = K + R."""
    return _clustered("token_cluster", metric, keep[0], linkage)


def token_peaks(metric: Array, keep: Sequence[int], neighbours: Sequence[int]) -> tuple[Array, Array]:
    """Run TokenPeaks, with up to 64 neighbours."""
    return _clustered("token_peaks", metric, keep[0], neighbours[0])


def _moved(
    name: str, inputs: Sequence[Array], axes: Sequence[int], kind: Any, *options: int
) -> tuple[Array, Array]:
    """Run a kernel that moves centres. Shapes: metric [B,N,D], weight [B,N], start [B,K] -> center [B,K,axes], assign [B,N]."""
    given, weights, places = ready(inputs[0]), ready(inputs[1], np.float32), ready(inputs[2], np.int64)
    (batch, tokens, width), count = given.shape, places.shape[1]
    center, assign = aligned((batch, count, *axes), kind), aligned((batch, tokens), np.int64)
    space = _workspace(getattr(library(), f"host_{name}_workspace")(batch, tokens))
    sizes = (batch, tokens, width, count, *options)
    _call(name, _type_of(given), given, weights, places, center, assign, space, *sizes)
    return center, assign


def token_means(metric: Array, weight: Array, start: Array, rounds: int) -> tuple[Array, Array]:
    """Run TokenMeans: center [B,K,D]."""
    return _moved("token_means", (metric, weight, start), metric.shape[2:], np.float32, rounds)


def token_medoids(metric: Array, weight: Array, start: Array, rounds: int, power: int) -> tuple[Array, Array]:
    """Run TokenMedoids: center [B,K]."""
    return _moved("token_medoids", (metric, weight, start), (), np.int64, rounds, power)


def token_combine(
    tokens: Array, size: Array, keep: Array, source: Array, destination: Array, type: int = 1
) -> tuple[Array, Array]:
    """Run TokenCombine in the type of `tokens`. Shapes: as in the operator."""
    given, sizes = ready(tokens), ready(size, np.float32)
    lists = [ready(listed, np.int64) for listed in (keep, source, destination)]
    batch, count, width = given.shape
    kept, removed = lists[0].shape[1], lists[1].shape[1]
    merged, total = aligned((batch, kept, width), given.dtype), aligned((batch, kept, 1), np.float32)
    shape = (batch, count, width, kept, removed)
    _call("token_combine", _type_of(given), given, sizes, *lists, merged, total, *shape)
    return merged, total


def token_restore(tokens: Array, source_map: Array) -> tuple[Array]:
    """Run TokenRestore. Shapes: tokens [B,K,C], source_map [B,N0] -> restored [B,N0,C]."""
    given, places = ready(tokens), ready(source_map, np.int64)
    batch, count, width = given.shape
    restored = aligned((batch, places.shape[1], width), given.dtype)
    sizes = (batch, count, places.shape[1], width)
    _call("token_gather", _type_of(given), given, places, restored, *sizes)
    return (restored,)


def token_score(
    queries: Array, keys: Array, bias: Array, scale: float, first_row: Sequence[int], end_row: Sequence[int]
) -> tuple[Array]:
    """Run TokenScore. Shapes: queries, keys [B,H,N,D], bias broadcastable to [B,H,R,N] -> score [B,N]."""
    asking, asked = ready(queries), ready(keys, queries.dtype)
    batch, heads, tokens, width = asking.shape
    first, end = first_row[0], end_row[0]
    offset = ready(bias, np.float32)
    spread = np.broadcast_to(offset, (batch, heads, end - first, tokens))
    strides = np.array([step // offset.itemsize for step in spread.strides], np.longlong)
    score = aligned((batch, tokens), np.float32)
    shape = (batch, heads, tokens, width, first, end)
    space = _workspace(library().host_token_score_workspace(*shape))
    _call(
        "token_score", _type_of(asking), asking, asked, offset, score, space, *shape, float(scale), strides
    )  # fmt: skip
    return (score,)


KERNELS: Mapping[str, Callable[..., tuple[Array, ...]]] = MappingProxyType(
    {
        "TokenSelect": token_select,
        "TokenGroupSelect": token_group_select,
        "TokenGreedySelect": token_greedy_select,
        "TokenCoverSelect": token_cover_select,
        "TokenMatch": token_match,
        "TokenCluster": token_cluster,
        "TokenPeaks": token_peaks,
        "TokenMeans": token_means,
        "TokenMedoids": token_medoids,
        "TokenCombine": token_combine,
        "TokenRestore": token_restore,
        "TokenScore": token_score,
    }
)
"""Operators that have a kernel -> their call, with the operator's own inputs and attributes."""


def run(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[Array, ...]:
    """Run operator `name` by its kernel.

    Raises: UnsupportedError for an operator without a kernel, without a C++ compiler, or for what the kernel refuses.
    """
    if name not in KERNELS:
        raise UnsupportedError(
            f"operator {name} has no CUDA kernel in this version; kernels: {', '.join(KERNELS)}; use "
            "backend='onnxruntime', which runs it as an ONNX function"
        )
    return KERNELS[name](*inputs, **attributes)
