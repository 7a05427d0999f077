"""Plain float32 implementations, the yardstick of the tolerance rule: loops over images, the arithmetic as published."""

from __future__ import annotations

from typing import Any

import numpy as np


def cosine(metric: Any, sources: Any, destinations: Any) -> Any:
    """Return similarities [B,S,T] in the type of `metric`; 0/0 -> 0, NaN -> 0."""
    norm = np.sqrt(np.sum(metric * metric, axis=-1, keepdims=True))
    with np.errstate(all="ignore"):
        unit = np.where(norm == 0, np.zeros_like(metric), metric / norm)
        product = unit[:, sources] @ unit[:, destinations].transpose(0, 2, 1)
    return np.where(np.isnan(product), 0, product).astype(metric.dtype)


def merged(x: Any, size: Any, assign: Any, keep: int) -> tuple[Any, Any]:
    """Return size-weighted means and sizes of the groups that `assign` [B,N] names, added one at a time."""
    total = np.zeros((len(x), keep, 1), size.dtype)
    mass = np.zeros((len(x), keep, x.shape[2]), x.dtype)
    for image, slots in enumerate(assign):
        for position, slot in enumerate(slots):
            total[image, slot] += size[image, position]
            mass[image, slot] += x[image, position] * size[image, position]
    return mass / total, total


def softmax(logits: Any) -> Any:
    weight = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weight / np.sum(weight, axis=-1, keepdims=True)


def attention(queries: Any, keys: Any, rows: int) -> Any:
    """Return attention [B,N] averaged over heads and the first `rows` queries, in the type of `queries`."""
    scale = np.asarray(keys.shape[-1] ** -0.5, queries.dtype)
    return softmax((queries[:, :, :rows] * scale) @ keys.transpose(0, 1, 3, 2)).mean(
        (1, 2), dtype=queries.dtype
    )
