"""Attention written otherwise: queries, keys and values [B,N,H,D] -> [B,N,C], the same numbers by other operators, or others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .entry import HEADS, WIDTH

SCALE = (WIDTH // HEADS) ** -0.5

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values [B,N,H,D] to [B,N,C]: heads before tokens, two products."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return ((q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v).transpose(1, 2).flatten(2)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def keys_by_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Channels before tokens, the softmax over the second last axis."""
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    return (v @ (k.transpose(-2, -1) @ q * SCALE).softmax(-2)).flatten(1, 2).transpose(1, 2)


def five_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An axis of one window before the heads."""
    q, k, v = (part[:, None].transpose(2, 3) for part in (q, k, v))
    return ((q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v).transpose(2, 3).flatten(3)[:, 0]


def logarithms(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * SCALE).log_softmax(-1).exp()
    return (weights @ v).transpose(1, 2).flatten(2)


def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One small attention for each head, then all side by side."""
    heads = [(q[:, :, n] @ k[:, :, n].transpose(1, 2) * SCALE).softmax(-1) @ v[:, :, n] for n in range(HEADS)]
    return torch.cat(heads, -1)


def heads_summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One small attention for each head, each brought to the full width, then their sum."""
    result = torch.zeros(())
    for n, place in enumerate(torch.eye(WIDTH).unflatten(0, (HEADS, -1))):
        result = result + (q[:, :, n] @ k[:, :, n].transpose(1, 2) * SCALE).softmax(-1) @ v[:, :, n] @ place
    return result


def shared_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All heads of queries read the first head of keys and values."""
    q, k, v = q.transpose(1, 2), k[:, None, :, 0], v[:, None, :, 0]
    return ((q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v).transpose(1, 2).flatten(2)


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return ((q @ k.transpose(-2, -1) * SCALE).sigmoid() @ v / 16).transpose(1, 2).flatten(2)


def over_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cross-covariance: each channel attends over the channels of its head."""
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    weights = (functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)).softmax(
        -1
    )
    return (weights @ v).flatten(1, 2).transpose(1, 2)
