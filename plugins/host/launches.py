"""What each operator's launcher takes: a table from the operator's inputs and attributes to the arguments of a C function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops.contract import Array

TYPES: Mapping[str, int] = MappingProxyType({"float32": 1, "float16": 10, "bfloat16": 16})
"""Element types the kernels take -> their ONNX numbers."""

INDICES = frozenset({"keep", "source", "destination", "source_map", "start"})
"""Inputs that are int64; all others are floats."""

FLOAT, PLACE, INDEX = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)
Numbers = Sequence[int]
Tensor = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class Launch:
    """A call of `host_<name>`: the type of the first input, the inputs, the outputs, workspace, and numbers.

    inputs: in the types given here, but for the first and what shares its type. outputs: shape and type. space: what
    `host_<name>_workspace` computes the bytes from; without it no workspace is passed.
    """

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Tensor, ...]
    numbers: tuple[Any, ...]
    space: tuple[int, ...] | None = None


def _floats(array: Array) -> Array:
    return np.asarray(array, FLOAT)


def _places(array: Any) -> Array:
    return np.asarray(array, INDEX)


def token_select(score: Array, keep: Numbers, protect: Numbers, order: int) -> Launch:
    """Shapes: score [B,N] -> index [B,K]."""
    batch, tokens = score.shape
    return Launch(
        "token_select", (score,), (((batch, keep[0]), INDEX),),
        (batch, tokens, keep[0], protect[0], order), (batch, keep[0], order),
    )  # fmt: skip


def token_group_select(
    score: Array, keep: Numbers, protect: Numbers, lengths: Numbers, quotas: Numbers
) -> Launch:
    """Shapes: score [B,N] -> index [B,K]; G groups."""
    (batch, tokens), count, first = score.shape, keep[0], protect[0]
    if sum(lengths) != tokens - first or sum(quotas) != count - first:
        raise UnsupportedError(
            f"TokenGroupSelect: lengths add up to {sum(lengths)} and quotas to {sum(quotas)}, with {tokens - first} "
            f"unprotected tokens of which {count - first} stay"
        )
    lists = tuple(np.asarray(listed, PLACE) for listed in (lengths, quotas))
    return Launch(
        "token_group_select", (score, *lists), (((batch, count), INDEX),),
        (batch, tokens, count, first, len(lengths)),
    )  # fmt: skip


def token_greedy_select(
    metric: Array,
    importance: Array,
    keep: Numbers,
    protect: Numbers,
    order: int,
    objective: int,
    power: float,
    mix: float,
    seed: int,
) -> Launch:
    """Shapes: metric [B,N,D], importance [B,N] -> index [B,K]."""
    options = (protect[0], order, objective, seed, float(power), float(mix))
    return _chosen("token_greedy_select", metric, importance, keep[0], options)


def token_cover_select(
    metric: Array, importance: Array, keep: Numbers, protect: Numbers, order: int, power: float, mix: float
) -> Launch:
    """Shapes: metric [B,N,D], importance [B,N] -> index [B,K]."""
    options = (protect[0], order, float(power), float(mix))
    return _chosen("token_cover_select", metric, importance, keep[0], options)


def token_determinant_select(
    metric: Array, importance: Array, keep: Numbers, protect: Numbers, order: int, mix: float, epsilon: float
) -> Launch:
    """Shapes: metric [B,N,D], importance [B,N] -> index [B,K]."""
    options = (protect[0], order, float(mix), float(epsilon))
    return _chosen("token_determinant_select", metric, importance, keep[0], options)


def _chosen(name: str, metric: Array, importance: Array, keep: int, options: tuple[Any, ...]) -> Launch:
    batch, tokens, width = metric.shape
    return Launch(
        name, (metric, _floats(importance)), (((batch, keep), INDEX),),
        (batch, tokens, width, keep, *options), (batch, tokens),
    )  # fmt: skip


def token_match(
    metric: Array,
    sources: Numbers,
    destinations: Numbers,
    others: Numbers,
    keep: Numbers,
    remove: Numbers,
    order: int,
) -> Launch:
    """Shapes: metric [B,N,D] -> value [B,S], keep [B,K], source [B,R], destination [B,R]."""
    batch, tokens, width = metric.shape
    lists = tuple(np.asarray(listed, PLACE) for listed in (sources, destinations, others))
    counts = tuple(len(listed) for listed in lists)
    outputs = (counts[0], FLOAT), (keep[0], INDEX), (remove[0], INDEX), (remove[0], INDEX)
    return Launch(
        "token_match", (metric, *lists), tuple(((batch, count), kind) for count, kind in outputs),
        (batch, tokens, width, *counts, remove[0], order), (batch, *counts[:2]),
    )  # fmt: skip


def token_merge(tokens: Array, size: Array, metric: Array, *, type: int = 1, **pairing: Any) -> Launch:
    """In the type of `tokens`, by a metric in its own. Shapes: as in the operator."""
    match, (batch, _, channels) = token_match(metric, **pairing), tokens.shape
    kept, metric_type = pairing["keep"][0], TYPES.get(metric.dtype.name, 0)
    merged = ((batch, kept, channels), tokens.dtype), ((batch, kept, 1), FLOAT)
    return Launch(
        "token_merge", (tokens, _floats(size), *match.inputs), (*merged, *match.outputs),
        (*match.numbers, channels, metric_type), match.space,
    )  # fmt: skip


def token_cluster(metric: Array, keep: Numbers, remove: Numbers, linkage: int) -> Launch:
    """Shapes: metric [B,N,D] -> center [B,K], assign [B,N]; N = K + R."""
    return _clustered("token_cluster", metric, keep[0], linkage)


def token_peaks(metric: Array, keep: Numbers, neighbours: Numbers) -> Launch:
    """Shapes: metric [B,N,D] -> center [B,K], assign [B,N]; up to 64 neighbours."""
    return _clustered("token_peaks", metric, keep[0], neighbours[0])


def _clustered(name: str, metric: Array, keep: int, option: int) -> Launch:
    batch, tokens, width = metric.shape
    return Launch(
        name, (metric,), (((batch, keep), INDEX), ((batch, tokens), INDEX)),
        (batch, tokens, width, keep, option), (batch, tokens),
    )  # fmt: skip


def token_means(metric: Array, weight: Array, start: Array, rounds: int) -> Launch:
    """Shapes: metric [B,N,D], weight [B,N], start [B,K] -> center [B,K,D], assign [B,N]."""
    return _moved("token_means", (metric, weight, start), metric.shape[2:], FLOAT, rounds)


def token_medoids(metric: Array, weight: Array, start: Array, rounds: int, power: int) -> Launch:
    """Shapes: metric [B,N,D], weight [B,N], start [B,K] -> center [B,K], assign [B,N]."""
    return _moved("token_medoids", (metric, weight, start), (), INDEX, rounds, power)


def _moved(
    name: str, inputs: Sequence[Array], axes: tuple[int, ...], kind: np.dtype[Any], *options: int
) -> Launch:
    metric, weight, start = inputs
    (batch, tokens, width), keep = metric.shape, start.shape[1]
    return Launch(
        name, (metric, _floats(weight), _places(start)),
        (((batch, keep, *axes), kind), ((batch, tokens), INDEX)),
        (batch, tokens, width, keep, *options), (batch, tokens),
    )  # fmt: skip


def token_combine(
    tokens: Array, size: Array, keep: Array, source: Array, destination: Array, type: int = 1
) -> Launch:
    """In the type of `tokens`. Shapes: as in the operator."""
    (batch, count, width), kept, removed = tokens.shape, keep.shape[1], source.shape[1]
    return Launch(
        "token_combine", (tokens, _floats(size), *map(_places, (keep, source, destination))),
        (((batch, kept, width), tokens.dtype), ((batch, kept, 1), FLOAT)),
        (batch, count, width, kept, removed),
    )  # fmt: skip


def token_restore(tokens: Array, source_map: Array) -> Launch:
    """Shapes: tokens [B,K,C], source_map [B,N0] -> restored [B,N0,C]."""
    (batch, count, width), wanted = tokens.shape, source_map.shape[1]
    return Launch(
        "token_gather", (tokens, _places(source_map)), (((batch, wanted, width), tokens.dtype),),
        (batch, count, wanted, width),
    )  # fmt: skip


def token_score(
    queries: Array, keys: Array, bias: Array, scale: float, first_row: Numbers, end_row: Numbers
) -> Launch:
    """Shapes: queries, keys [B,H,N,D], bias broadcastable to [B,H,R,N] -> score [B,N]."""
    batch, heads, tokens, width = queries.shape
    shape = (batch, heads, tokens, width, first_row[0], end_row[0])
    offset = np.ascontiguousarray(bias, FLOAT)
    spread = np.broadcast_to(offset, (batch, heads, end_row[0] - first_row[0], tokens))
    strides = np.array([step // offset.itemsize for step in spread.strides], np.longlong)
    return Launch(
        "token_score", (queries, np.asarray(keys, queries.dtype), offset), (((batch, tokens), FLOAT),),
        (*shape, float(scale), strides), shape,
    )  # fmt: skip


KERNELS: Mapping[str, Callable[..., Launch]] = MappingProxyType(
    {
        "TokenSelect": token_select,
        "TokenGroupSelect": token_group_select,
        "TokenGreedySelect": token_greedy_select,
        "TokenCoverSelect": token_cover_select,
        "TokenDeterminantSelect": token_determinant_select,
        "TokenMatch": token_match,
        "TokenCluster": token_cluster,
        "TokenPeaks": token_peaks,
        "TokenMeans": token_means,
        "TokenMedoids": token_medoids,
        "TokenCombine": token_combine,
        "TokenMerge": token_merge,
        "TokenRestore": token_restore,
        "TokenScore": token_score,
    }
)
"""Operators that have a kernel -> their launch, for the operator's own inputs and attributes."""
