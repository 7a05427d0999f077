"""What a host does with a model whose outputs hold fewer tokens: which rows of a prompt stay, and at which positions.

A prompt has a placeholder for every image token. Of a picture whose tokens begin at `start`, those in `kept_index` stay, and
all text; `fewer_placeholders` cuts a prompt that was written for all of them. Shapes: B prompts, L tokens of each, K of N image
tokens kept. Of videos, `Medium` and `medium_positions` number what was kept of each in three rows, and `placeholders` and
`evs_count` count as serving engines do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenrt.errors import TokenrtError

__all__ = [
    "Medium",
    "evs_count",
    "fewer_placeholders",
    "medium_positions",
    "next_position",
    "pixelprune",
    "placeholders",
    "position_ids",
    "staying",
]

Index = npt.NDArray[np.int64]
WIDTH, LARGEST = "width", "largest"
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


def fewer_placeholders(ids: npt.ArrayLike, placeholder: int, count: int) -> Index:
    """The prompts [B,L] that a processor wrote for every token, with `count` placeholders for each picture: [B,L'].

    A picture is a run of the word `placeholder`; the words around it stay. Raises: TokenrtError where there is no picture, where
    one has fewer placeholders than `count`, or where prompts would differ in length.
    """
    prompts, found = np.atleast_2d(np.asarray(ids, np.int64)), list[Index]()
    for prompt in prompts:
        marked = prompt == placeholder
        begins = np.flatnonzero(marked & ~np.concatenate([[False], marked[:-1]]))
        number = np.arange(len(prompt)) - np.repeat([0, *begins], np.diff([0, *begins, len(prompt)]))
        runs = np.add.reduceat(marked, begins) if len(begins) else begins
        if not len(runs) or runs.min() < count:
            told = f"{runs.min()}" if len(runs) else "none"
            raise TokenrtError(
                f"a prompt has {told} of the placeholder {placeholder} for a picture, and {count} rows are handed on"
            )
        found.append(prompt[~marked | (number < count)])
    if len({len(prompt) for prompt in found}) > 1:
        raise TokenrtError(
            f"the prompts would have {', '.join(str(len(prompt)) for prompt in found)} tokens; give them one by one"
        )
    return np.stack(found)


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


@dataclass(frozen=True)
class Medium:
    """The tokens kept of one video or picture.

    kept [K]: places among frames x height x width of `grid`; step: how much time passes from frame to frame, which is tokens per
    second times seconds per frame.
    """

    grid: tuple[int, int, int]
    kept: Index
    step: float = 1.0

    def rows(self) -> Index:
        """Time, height and width of each token kept, from 0: [3,K]."""
        time, height, width = np.unravel_index(self.kept, self.grid)
        return np.stack([np.floor(time * self.step).astype(np.int64), height, width])


def medium_positions(
    is_medium: npt.NDArray[np.bool_], media: Sequence[Medium], behind: str = WIDTH
) -> tuple[Index, int]:
    """Positions [3,L] of a prompt, and what is added to a length for the position of the next token.

    is_medium [L]: which tokens of the prompt are those of the media, in their order. Text counts up in all three rows; a medium
    starts at the next position, and the text behind it goes on from there plus the grid's width (behind=width, as Qwen2.5-VL
    does), which may lie inside the medium's times, or behind its largest position (behind=largest, as Qwen3-VL does).
    Raises: PlanError where the prompt has another number of such tokens than the media.
    Source: recompute_mrope_positions of vLLM and TensorRT-LLM, by its description.
    """
    marked, total = np.flatnonzero(is_medium), sum(len(medium.kept) for medium in media)
    if len(marked) != total:
        raise TokenrtError(f"the prompt has {len(marked)} tokens of media, and {total} were kept")
    found = np.zeros((3, len(is_medium)), np.int64)
    place = after = 0
    for medium in media:
        first, count = int(marked[0]), len(medium.kept)
        start = after + first - place
        found[:, place:first] = np.arange(after, start)
        rows = medium.rows() + start
        found[:, first : first + count] = rows
        after = start + medium.grid[2] if behind == WIDTH else int(rows.max()) + 1
        place, marked = first + count, marked[count:]
    found[:, place:] = np.arange(after, after + len(is_medium) - place)
    return found, int(found.max()) + 1 - len(is_medium)


def placeholders(kept: int, frames: int) -> list[int]:
    """How many placeholders each frame has in a prompt that is written before it is known which tokens stay."""
    each = kept // frames
    return [each] * (frames - 1) + [kept - each * (frames - 1)]


def evs_count(frames: int, tokens: int, rate: float) -> int:
    """How many of frames of `tokens` tokens the engines keep by EVS at a pruning rate."""
    return max(tokens, int(frames * tokens * (1 - rate)))


def pixelprune(patches: npt.ArrayLike, grid: tuple[int, int], threshold: float = 0.0) -> Index:
    """The tokens [K] of a picture that a prediction from their neighbours does not tell, ascending, before a tower encodes them.

    patches [N,D]: the pixels of each token of a grid (h, w). With A on the left, B above and C between, B is predicted where C is
    A and not B, else A; in the first row A, in the first column B; the first token stays. Two are the same where no pixel differs
    by more than `threshold`, in float32. Above 0 a token that does not stay counts as its prediction for those behind it, as
    released.

    Raises: TokenrtError where the grid is of another number of tokens.
    Source: PixelPrune, arXiv 2604.00886, by its description.
    """
    pixels = np.array(patches, np.float32)
    height, width = grid
    if pixels.ndim != 2 or len(pixels) != height * width:
        raise TokenrtError(f"patches {list(pixels.shape)} are not those of {height} x {width} tokens, [N,D]")
    told = pixels.reshape(height, width, -1).copy()

    def same(one: Any, other: Any) -> bool:
        return bool(np.max(np.abs(one - other)) <= np.float32(threshold))

    kept = []
    for row, column in np.ndindex(height, width):
        if row and column:
            left, above, between = told[row, column - 1], told[row - 1, column], told[row - 1, column - 1]
            guess = above if same(between, left) and not same(between, above) else left
        elif row or column:
            guess = told[row - 1, column] if row else told[row, column - 1]
        if (row or column) and same(told[row, column], guess):
            if threshold:
                told[row, column] = guess
        else:
            kept.append(row * width + column)
    return np.array(kept, np.int64)
