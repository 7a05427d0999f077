"""DyCoke: of every second frame, and of frames two apart, drop the tokens that repeat the frame they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clips, frames, steps


@dataclass(frozen=True)
class DyCoke(Method):
    """Keep m of the n tokens of some frames, those least like the token at their place in another frame; the others whole.

    Frame 2i + 1 is compared with frame 2i, and frame 4i + 2 with frame 4i as long as more than four frames are left
    (4i < F - 4); likeness is the cosine. The authors keep m = floor((1 - p) n), p = 0.7. As that many frames are thinned
    alike, tokens leave in multiples of their number. Padding counts as zero rows, which are like nothing.
    This is the merging part (temporal token merging, which despite its name merges nothing); the part that thins the cache
    while decoding is dycoke_cache.
    Options: frames F (0: from the grid (F, h, w), else two); order of a thinned frame's tokens: position, or score, as
    released (least alike first).
    """

    name: ClassVar[str] = "dycoke"
    summary: ClassVar[str] = "drop the tokens of every other frame that repeat the frame before"
    paper: ClassVar[str] = (
        "Tao et al., DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models, CVPR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("DyCoke: dropping before the language model",)
    deviations: ClassVar[str] = (
        "the release takes five frames or more; here two to four are thinned by the same rule"
    )

    frames: int = 0
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, each = self._split(site)
        pairs = thinned(count)
        stay = self._staying(site, count, each)
        rows = frames.folded(op, taps, site, count)
        alike = frames.likeness(op, rows, list(pairs), list(pairs.values()))
        flat = op("Neg", op("Reshape", alike, np.array([-1, each])))
        local = op("TokenSelect", flat, keep=stay, protect=0, order=steps.ORDERS[self.order])
        shift = site.protect + np.array(list(pairs))[None, :, None] * each
        moved = op("Add", op("Reshape", local, np.array([-1, len(pairs), stay])), shift)
        thin = op("Reshape", moved, np.array([-1, len(pairs) * stay]))
        whole = [place for place in range(count * each) if place // each not in pairs]
        fixed = np.array([*range(site.protect), *(site.protect + place for place in whole)])
        ahead = op("Expand", op.constant(fixed[None]), steps.batch_shape(op, taps.tokens, len(fixed)))
        frame_of = [*[-1] * site.protect, *(place // each for place in whole)]
        frame_of += [frame for frame in pairs for _ in range(stay)]
        order = np.argsort(frame_of, kind="stable")
        index = op("Gather", op("Concat", ahead, thin, axis=1), order, axis=1)
        return steps.pruned(op, taps, site, index)

    def _staying(self, site: Site, count: int, each: int) -> int:
        """How many tokens of a thinned frame stay. Raises: PlanError naming counts that fit."""
        thin = len(thinned(count))
        leave, rest = divmod(site.removed, thin) if thin else (0, 1)
        if rest or leave >= each:
            fits = [kept for kept in self.counts(site) if abs(kept - site.keep) < thin]
            raise PlanError(
                f"block {site.block}: {self.name} thins {thin} of {count} frames of {each} tokens alike, so {site.keep} of "
                f"{site.tokens} tokens cannot stay; "
                + (
                    f"{' or '.join(map(str, fits))} can"
                    if fits
                    else f"say the frames with {clips.FRAMES_OPTION}"
                )
            )
        return each - leave

    def counts(self, site: Site) -> Sequence[int]:
        count, each = self._split(site)
        thin = len(thinned(count))
        return [site.tokens - thin * part for part in range(each - 1, 0, -1)] if thin else []

    def _split(self, site: Site) -> tuple[int, int]:
        """Frames, and tokens of each."""
        return frames.split(self.name, self.frames or clips.of_grid(site.grid) or 2, site)

    @property
    def unit(self) -> int:
        return max(len(thinned(self.frames or 2)), 1)

    def laid_out(self, grid: tuple[int, ...] | None) -> DyCoke:
        return replace(self, frames=self.frames or clips.of_grid(grid))


def thinned(count: int) -> dict[int, int]:
    """The frames that are thinned, ascending, each with the one it is compared with."""
    pairs = {frame: frame - 1 for frame in range(1, count, 2)}
    pairs |= {frame + 2: frame for frame in range(0, count - 4, 4)}
    return dict(sorted(pairs.items()))
