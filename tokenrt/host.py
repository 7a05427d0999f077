"""What a host does with a model whose outputs hold fewer tokens: which rows of a prompt stay, and at which positions.

A prompt has a placeholder for every image token. Of a picture whose tokens begin at `start`, those in `kept_index` stay, and
all text. Shapes: B prompts, L tokens of each, K of N image tokens kept. Of videos, `Medium` and `medium_positions` number what
was kept of each in three rows, and `placeholders` and `evs_count` count as serving engines do.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenrt.errors import TokenrtError
from tokenrt.passes.methods.host import LARGEST as LARGEST
from tokenrt.passes.methods.host import WIDTH as WIDTH
from tokenrt.passes.methods.host import Medium as Medium
from tokenrt.passes.methods.host import evs_count as evs_count
from tokenrt.passes.methods.host import placeholders as placeholders
from tokenrt.passes.methods.host import positions as medium_positions

__all__ = [
    "Medium",
    "evs_count",
    "medium_positions",
    "next_position",
    "placeholders",
    "position_ids",
    "staying",
]

Index = npt.NDArray[np.int64]
Convention = Literal["original", "renumbered"]


def staying(kept_index: npt.ArrayLike, start: int, tokens: int, length: int) -> Index:
    """The tokens of a prompt that stay: kept_index [B,K] of the `tokens` image tokens from `start` on -> [B,L-N+K], ascending.

    Raises: TokenrtError where the picture does not lie in the prompt, or an index beside the picture.
    """
    kept = np.atleast_2d(np.asarray(kept_index, np.int64))
    if not 0 <= start <= start + tokens <= length:
        raise TokenrtError(
            f"a picture of {tokens} tokens from {start} on does not lie in a prompt of {length}"
        )
    if kept.size and not 0 <= kept.min() <= kept.max() < tokens:
        raise TokenrtError(
            f"kept_index has {kept.min()} to {kept.max()}, and the picture {tokens} tokens, 0 to {tokens - 1}"
        )
    before, behind = np.arange(start), np.arange(start + tokens, length)
    text = [np.broadcast_to(part, (len(kept), len(part))) for part in (before, behind)]
    return np.concatenate([text[0], np.sort(kept, axis=1) + start, text[1]], axis=1)


def position_ids(stay: npt.ArrayLike, original: npt.ArrayLike, convention: Convention = "original") -> Index:
    """The positions of the tokens that stay [B,L'], from those of the whole prompt, [B,L], or [A,B,L] of A axes as in mRoPE.

    original: each keeps its own, as TensorRT-Edge-LLM has it; generation goes on at `next_position`. renumbered: 0, 1, 2 and
    so on, on every axis alike, as where a host counts what it is given (transformers.js, TensorRT-LLM). Raises: TokenrtError.
    """
    index, whole = np.asarray(stay, np.int64), np.asarray(original, np.int64)
    if whole.ndim not in (2, 3) or whole.shape[-2] != len(index):
        raise TokenrtError(
            f"positions {list(whole.shape)} are for other prompts than the {len(index)} whose tokens stay: expected [B,L] or "
            "[A,B,L]"
        )
    if convention == "renumbered":
        shape = (*whole.shape[:-1], index.shape[1])
        return np.broadcast_to(np.arange(index.shape[1]), shape).copy()
    if convention != "original":
        raise TokenrtError(f"no convention is called {convention!r}: original or renumbered")
    taken: Any = np.take_along_axis(
        whole, np.broadcast_to(index, (*whole.shape[:-1], index.shape[1])), axis=-1
    )
    return np.asarray(taken, np.int64)


def next_position(positions: npt.ArrayLike) -> Index:
    """The position of the first token that is generated, behind the largest there is: [B,L'] or [A,B,L'] -> [B]."""
    found = np.asarray(positions, np.int64)
    largest = found.max(axis=-1) if found.ndim == 2 else found.max(axis=(0, 2))
    return np.asarray(largest + 1, np.int64)
