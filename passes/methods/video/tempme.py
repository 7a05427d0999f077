"""TempMe: merge similar tokens inside each frame, later across neighbouring frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, steps
from tokenrt.passes.methods.parts.weights import Trained

AUTO, NONE = "auto", "none"
POSITIONS = "frame_positions"


@dataclass(frozen=True)
class TempMe(Trained):
    """Merge the most similar pairs of tokens of a frame; where neighbouring frames are joined, of all of them.

    Frames never change their order and lose equally many tokens, so K - P must be a multiple of the clips there
    are at the block: F frames until the first joining, F / g behind a joining of g frames. Inside a clip the
    token at i is a source where P + i is even (ToMe's parity, the class token of a frame counted), and the
    output order is unmerged sources by position, then destinations.
    Options: frames (0: from the grid, else one); join: BLOCK:FRAMES pairs as in 8:2,9:2,10:3, which blocks join
    how many neighbouring clips; none; or auto, the prime factors of F, ascending, at the blocks from 2L/3 on
    (2, 2 and 3 at blocks 8, 9 and 10 of 12 for twelve frames, as published); metric: keys, tokens, or auto,
    tokens where frames are joined, as published, and keys elsewhere; weights: optional, frame_positions [F,C],
    which is added to the tokens of each clip where clips are joined, after the matching.
    Where attention is divided, tokens are places of all frames, or frames of all places: one clip, which none are joined to.
    """

    name: ClassVar[str] = "tempme"
    summary: ClassVar[str] = (
        "merge similar tokens inside each frame, in late blocks across neighbouring frames"
    )
    paper: ClassVar[str] = (
        "Shen et al., TempMe: Video Temporal Token Merging for Efficient Text-Video Retrieval, ICLR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("TempMe",)
    merges: ClassVar[bool] = True
    optional: ClassVar[Mapping[str, str]] = {POSITIONS: "F,C"}
    deviations: ClassVar[str] = (
        "the release merges joined frames before the attention and once more behind it; here a block merges once"
    )

    frames: int = 0
    join: str = AUTO
    metric: str = AUTO

    def __post_init__(self) -> None:
        steps.choice(self.name, "metric", self.metric, (AUTO, "keys", "tokens"))
        self._joins(1, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count = clips.frames(self.name, self.laid_out(site.grid).frames, taps, site)
        joins = self._joins(count, site.blocks)
        groups = self._clips(count, joins, site.block)
        joined = joins.get(site.block, 1)
        clips.inside(self.name, site, groups)
        after = clips.staying(self.name, site, groups)
        by_tokens = self.metric == "tokens" or (self.metric == AUTO and joined > 1)
        metric = op("Cast", taps.tokens, to=steps.FLOAT) if by_tokens else taps.metric()
        clip = clips.start(op, taps, site, metric)
        if joined > 1 and self.weights is not None:
            clip = replace(clip, tokens=self._placed(op, clip, site, groups * joined))
        merged = clips.merge_inside(op, clip, groups, after, site.protect, 0)
        return clips.finish(op, taps, site, merged, count)

    @property
    def unit(self) -> int:
        return max(self.frames, 1)

    def laid_out(self, grid: tuple[int, ...] | None) -> TempMe:
        return replace(self, frames=self.frames or clips.of_whole_frames(grid))

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + clips.up(kept, self.unit)

    def fewest(self, tokens: int, protect: int) -> int:
        free = tokens - protect
        sources = free // 2 if protect % 2 else (free + 1) // 2
        return protect + clips.up(max(free - sources, 1), self.unit)

    def _clips(self, count: int, joins: dict[int, int], block: int) -> int:
        """Groups of frames at a block: F over everything joined up to it."""
        together = math.prod(group for where, group in joins.items() if where <= block)
        if count % together:
            raise MethodError(
                f"option join={self.join} of method {self.name!r} joins {together} frames up to block {block}, "
                f"and {count} frames do not split into such groups"
            )
        return count // together

    def _joins(self, count: int, blocks: int) -> dict[int, int]:
        """Block -> how many neighbouring clips it joins. Raises: MethodError for a malformed option."""
        if self.join == AUTO:
            return dict(enumerate(_factors(count), start=2 * blocks // 3))
        if self.join == NONE:
            return {}
        try:
            pairs = (pair.split(":") for pair in self.join.split(","))
            found = {int(block): int(group) for block, group in pairs}
        except ValueError:
            found = {}
        if not found or min(found) < 0 or min(found.values()) < 1 or len(found) < self.join.count(",") + 1:
            raise MethodError(
                f"option join={self.join} of method {self.name!r}: expected auto, none, or BLOCK:FRAMES pairs "
                "as in 8:2,9:2,10:3"
            )
        return found

    def _placed(self, op: Ops, clip: clips.Clip, site: Site, clips: int) -> Value:
        """Return the tokens with the row of their clip added; `clips` is counted before the joining."""
        table = self.tensor(POSITIONS, site)
        if len(table) < clips:
            raise MethodError(
                f"tensor {POSITIONS!r} of method {self.name!r} [F,C] has {len(table)} rows, and block "
                f"{site.block} joins {clips} clips"
            )
        rows = np.repeat(table[:clips], clip.count // clips, axis=0)[None]
        return op("Add", clip.tokens, rows)


def _factors(count: int) -> list[int]:
    """Prime factors in ascending order."""
    found, factor = [], 2
    while count > 1:
        while count % factor == 0:
            found.append(factor)
            count //= factor
        factor += 1
    return found
