"""Outputs that have only the rows that are left: the original's, brought to the same rows, so that the two can be compared.

A reduced model with such outputs tells which rows they are: `kept_index` [B,K], or `token_source_map` [B,N] where tokens were
merged; a merged row is compared with the mean of those it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenrt.passes.checking.check_data import Array
from tokenrt.passes.graph.interface import KEPT, MAP

Dims = tuple[int | str, ...]
NOTHING: Mapping[str, str] = MappingProxyType({})


def shorter(before: Dims, after: Dims) -> bool:
    """Whether a declared shape has fewer rows than another, and else the same sizes; frames of a clip may be one sequence."""
    if len(before) != len(after) or len(before) < 2 or before[-1] != after[-1]:
        return False
    rows, left = before[-2], after[-2]
    if not isinstance(rows, int) or not isinstance(left, int):
        return False
    if before[:-2] == after[:-2]:
        return left < rows
    return joined(before, after) and isinstance(before[0], int) and left < before[0] * rows


def joined(before: Dims, after: Dims) -> bool:
    """Whether the frames of a clip, or crops, that an output has side by side are one sequence in the other."""
    return len(before) == len(after) == 3 and after[0] == 1 and isinstance(before[0], int) and before[0] > 1


def aligned(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], told: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """The original's outputs, with the rows of those that are shorter in the reduced model.

    told: for a cache the output that tells which entries it has, as the reduced model says.
    """
    made, rows = dict(reference), KEPT in candidate or MAP in candidate
    for name in [name for name in reference if name in candidate]:
        every, left = np.asarray(reference[name]), np.asarray(candidate[name])
        if not shorter(every.shape, left.shape):
            continue
        if told.get(name) in candidate:
            made[name] = _entries(every, left, np.asarray(candidate[told[name]]))
        elif rows:
            made[name] = _rows(every, left, candidate)
    return made


def _entries(every: Array, left: Array, index: Array) -> Array:
    """The entries [B,H,K,D] of a cache [B,H,N,D]; as they are where the index is not of K of them."""
    wide = index[:, None] if index.ndim == 2 else index
    if wide.shape[-1] != left.shape[-2] or wide.size == 0 or wide.max() >= every.shape[-2]:
        return every
    return np.take_along_axis(every, wide[..., None], axis=-2)


def _rows(every: Array, left: Array, candidate: Mapping[str, Any]) -> Array:
    """The rows [..,K,C] of [..,N,C]; as they are where the model tells of others."""
    count, channels = left.shape[-2:]
    if KEPT in candidate and MAP not in candidate:
        if every.ndim > 3:
            told = (np.asarray(value) for name, value in candidate.items() if name.startswith(KEPT))
            index = next((each for each in told if each.shape == (len(every), count)), None)
            return every if index is None else _entries(every, left, index)
        index = np.asarray(candidate[KEPT])
        rows = every.reshape(len(index), -1, channels)
        if index.shape[1] != count or index.size == 0 or index.max() >= rows.shape[1]:
            return every
        taken: Array = np.take_along_axis(rows, index[..., None], axis=1)
        return taken.reshape(left.shape)
    goes = np.asarray(candidate[MAP])
    rows = every.reshape(len(goes), -1, channels).astype(np.float64)
    if goes.shape[1] != rows.shape[1] or goes.max() >= count:
        return every
    share = (goes[:, None] == np.arange(count)[:, None]).astype(np.float64)
    alone = share.sum(axis=2, keepdims=True) == 0  # of what was dropped into a token that stands for all such
    share = np.where(alone, (goes < 0)[:, None].astype(np.float64), share)
    mean: Array = share @ rows / np.maximum(share.sum(axis=2, keepdims=True), 1)
    return mean.reshape(left.shape).astype(every.dtype)
