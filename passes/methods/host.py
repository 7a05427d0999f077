"""What the host of a video model does with the tokens that were kept: positions of the prompt, and placeholders before.

A reduced model tells in `kept_index` which tokens are left. They keep the positions they had in the whole grid, in three rows
(time, height, width), as rotary tables of video models want them. L tokens of a prompt, K kept of a medium.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenrt.errors import PlanError

Numbers = NDArray[np.int64]
WIDTH, LARGEST = "width", "largest"


@dataclass(frozen=True)
class Medium:
    """The tokens kept of one video or picture.

    kept [K]: places among frames x height x width of `grid`; step: how much time passes from frame to frame, which is tokens per
    second times seconds per frame.
    """

    grid: tuple[int, int, int]
    kept: Numbers
    step: float = 1.0

    def rows(self) -> Numbers:
        """Time, height and width of each token kept, from 0: [3,K]."""
        time, height, width = np.unravel_index(self.kept, self.grid)
        return np.stack([np.floor(time * self.step).astype(np.int64), height, width])


def positions(
    is_medium: NDArray[np.bool_], media: Sequence[Medium], behind: str = WIDTH
) -> tuple[Numbers, int]:
    """Positions [3,L] of a prompt, and what is added to a length for the position of the next token.

    is_medium [L]: which tokens of the prompt are those of the media, in their order. Text counts up in all three rows; a medium
    starts at the next position, and the text behind it goes on from there plus the grid's width (behind=width, as Qwen2.5-VL
    does), which may lie inside the medium's times, or behind its largest position (behind=largest, as Qwen3-VL does).
    Raises: PlanError where the prompt has another number of such tokens than the media.
    Source: recompute_mrope_positions of vLLM and TensorRT-LLM, by its description.
    """
    marked, total = np.flatnonzero(is_medium), sum(len(medium.kept) for medium in media)
    if len(marked) != total:
        raise PlanError(f"the prompt has {len(marked)} tokens of media, and {total} were kept")
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
