"""Steps of methods that cut a clip into segments of frames, in which places of the grid stand still or move.

Which frames belong together depends on the video where these methods were published, and with it every count. Here both are
given before the graph is written: the frames of each segment, and how many of its places are still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Method, Ops, Site, Value
from tokenrt.passes.methods.parts import centers, clips, clusters, frames, steps

NEIGHBOURS = 7
"""Of density peaks, in HoliTom and PruneVid."""

FRAMES_EACH = 4
"""Frames of a segment where nothing else is said."""


@dataclass(frozen=True)
class Segmented(Method):
    """A method that keeps shares of the still places of each segment and of the others of each frame, at a ratio that fits K."""

    frames: int = 0
    segments: str = ""
    still: str = ""
    share: float = 0.5

    def __post_init__(self) -> None:
        steps.at_least(self.name, "frames", self.frames, 0)
        if not 0 <= self.share <= 1:
            raise MethodError(f"option share={self.share} of method {self.name!r}: expected 0 to 1")

    @property
    def proportional(self) -> bool:
        return False

    def kept(self, held: int, others: int, ratio: float) -> tuple[int, int]:
        """How many of a segment's still places stay at a ratio, and how many of the other places of each frame."""
        raise NotImplementedError

    def layout(self, site: Site) -> tuple[int, int, list[int], list[int]]:
        """Frames, tokens of each, frames of each segment, and how many of its places are still."""
        count, each = frames.split(self.name, self.frames, site)
        parts = lengths(self.name, self.segments, count, count // FRAMES_EACH)
        return count, each, parts, still(self.name, self.still, self.share, parts, each)

    def total(self, site: Site) -> Callable[[float], int]:
        """How many unprotected tokens stay at a ratio."""
        _, each, parts, held = self.layout(site)

        def at(ratio: float) -> int:
            shares = [self.kept(places, each - places, ratio) for places in held]
            return sum(fixed + length * moving for (fixed, moving), length in zip(shares, parts, strict=True))

        return at

    def counts(self, site: Site) -> Sequence[int]:
        return reachable(site, self.total(site))

    def laid_out(self, grid: tuple[int, ...] | None) -> Self:
        return replace(self, frames=self.frames or clips.of_grid(grid))


def numbers(method: str, option: str, text: str) -> list[int]:
    """Read an option as in 3+5. Raises: MethodError."""
    if text and not all(part.isdigit() for part in text.split("+")):
        raise MethodError(f"option {option}={text} of method {method!r}: expected numbers, as in 3+5")
    return [int(part) for part in text.split("+")] if text else []


def lengths(method: str, option: str, count: int, parts: int) -> list[int]:
    """Frames of each segment: as `option` says, else `parts` segments as even as can be. Raises: PlanError."""
    asked = numbers(method, "segments", option)
    if asked and (sum(asked) != count or 0 in asked):
        raise PlanError(f"{method}: segments={option} are {sum(asked)} frames, and the clip has {count}")
    parts = max(1, min(parts, count))
    return asked or [len(part) for part in np.array_split(np.arange(count), parts)]


def still(method: str, option: str, share: float, segments: Sequence[int], each: int) -> list[int]:
    """Still places of each segment: as `option` says, else that share of the n; none in a single frame. Raises: PlanError."""
    asked = numbers(method, "still", option)
    if asked and (len(asked) != len(segments) or max(asked) > each):
        raise PlanError(
            f"{method}: still={option} must name a number of places up to {each} for each of {len(segments)} segments"
        )
    found = asked or [int(share * each)] * len(segments)
    return [places if frames > 1 else 0 for places, frames in zip(found, segments, strict=True)]


def fitted(method: str, site: Site, count: Callable[[float], int]) -> float:
    """The ratio at which the counts, which grow with it, add up to the K - P outputs there are. Raises: PlanError."""
    wanted = site.keep - site.protect
    low, high = _around(count, wanted)
    if count(high) != wanted:
        near = sorted({site.protect + count(ratio) for ratio in (low, high)} - {site.tokens, site.protect})
        raise PlanError(
            f"block {site.block}: {method} cannot leave {site.keep} of {site.tokens} tokens, as it rounds in every frame and "
            f"segment; {' or '.join(map(str, near)) or 'no count near it'} can"
        )
    return high


def reachable(site: Site, count: Callable[[float], int]) -> list[int]:
    """All K below N at which the counts add up for some ratio, ascending."""
    found, wanted, free = list[int](), 1, site.tokens - site.protect
    while wanted <= (kept := count(_around(count, wanted)[1])) < free:
        found.append(site.protect + kept)
        wanted = kept + 1
    return found


def _around(count: Callable[[float], int], wanted: int) -> tuple[float, float]:
    """Two ratios side by side: the larger is the first at which there are as many as wanted."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) >= wanted else (middle, high)
    return low, high


def places(op: Ops, score: Value, count: int, each: int) -> tuple[Value, Value]:
    """The `count` places of the highest score and the others, both ascending: score [B,n] -> [B,S] and [B,n-S]; 0 < S < n."""
    best = op("TokenSelect", score, keep=count, protect=0, order=0)
    left = op("ScatterElements", fill(op, score, 1.0, each), best, fill(op, score, 0.0, count), axis=1)
    return best, op("TokenSelect", left, keep=each - count, protect=0, order=0)


def fill(op: Ops, like: Value, number: float, count: int) -> Value:
    """[B,count] float32, all one number, B that of `like`."""
    value = op.constant(np.full((1, 1), number, np.float32))
    return op("Expand", value, steps.batch_shape(op, like, count))


def peaks(op: Ops, rows: Value, count: int, keep: int, neighbours: int) -> tuple[Value, Value]:
    """Density peaks [B,M] of rows [B,m,C] by descending score, and the nearest of each row [B,m]."""
    return tuple(
        op("TokenPeaks", centers.scaled_rows(op, rows, count), keep=keep, neighbours=min(neighbours, count))
    )


def ascending_peaks(op: Ops, rows: Value, count: int, keep: int, neighbours: int) -> tuple[Value, Value]:
    """The same by ascending place."""
    center, assign = peaks(op, rows, count, keep, neighbours)
    _, center, assign = clusters.by_position(op, center, assign, keep)
    return center, assign
