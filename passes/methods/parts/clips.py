"""Steps of the video methods: frames of a clip as groups of consecutive tokens, merging inside each group.

A clip is one sequence: protected tokens first, then the tokens of frame 0, of frame 1 and so on, the same number n
of each. A site is given N = P + F * n and K = P + F' * n' only; F follows from the option `frames` or the grid, and
behind the first site from the name of a state, which is the one thing about a state that is known when the graph is
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import steps

STATE = "frames"
FRAMES_OPTION = "--set frames=F"


@dataclass(frozen=True)
class Clip:
    """The M unprotected tokens of a site while they are merged.

    tokens [B,M,C] float32, so that two merges round once; size [B,M,1]; metric [B,M,D]; position [B,M]: the
    unprotected input token whose place each takes; assign [B,M0]: the token each unprotected input is part of.
    """

    tokens: Value
    size: Value
    metric: Value
    position: Value
    assign: Value
    count: int


def frames(method: str, option: int, taps: Taps, site: Site) -> int:
    """Return the frames of the clip: as the site before left them, the option, the grid (F, h, w), else one.

    Raises: PlanError where the unprotected tokens do not split into that many frames.
    """
    for name in taps.state:
        if name.startswith(STATE):
            return int(name.removeprefix(STATE))
    found = option or of_grid(site.grid) or 1
    free = (site.initial or site.tokens) - site.protect
    if free % found:
        raise PlanError(
            f"{method}: {free} tokens are not {found} frames of equal size; say how many frames the clip has "
            f"with {FRAMES_OPTION}"
        )
    return found


def up(count: int, unit: int) -> int:
    """Round up to a multiple."""
    return -(-count // unit) * unit


def of_grid(grid: tuple[int, ...] | None) -> int:
    """Return the frames a grid (F, h, w) has; 0 where it is another or unknown."""
    return grid[0] if grid is not None and len(grid) == 3 else 0


def of_whole_frames(grid: tuple[int, ...] | None) -> int:
    """The same for a method that compares tokens inside a frame: frames of one token each are the tokens of one clip."""
    return 1 if grid is not None and len(grid) == 3 and grid[1:] == (1, 1) else of_grid(grid)


def state(op: Ops, count: int) -> Mapping[str, Value]:
    """Return the state that tells the next site of `count` frames."""
    return {f"{STATE}{count}": op.constant(np.full((1, 1), count))}


def inside(method: str, site: Site, groups: int) -> int:
    """Return the tokens in each of `groups` equal groups. Raises: PlanError where they do not split."""
    count = site.tokens - site.protect
    if count % groups:
        raise PlanError(
            f"block {site.block}: {method} cannot split {count} tokens into {groups} equal groups of frames; say "
            f"how many frames the clip has with {FRAMES_OPTION}"
        )
    return count // groups


def staying(method: str, site: Site, groups: int, what: str = "groups of frames") -> int:
    """Return the tokens left in each of `groups` equal groups. Raises: PlanError naming counts that fit."""
    left = site.keep - site.protect
    if left % groups or not left:
        below, above = (site.protect + part * groups for part in (left // groups, left // groups + 1))
        near = f"{above}" if below == site.protect else f"{below} or {above}"
        raise PlanError(
            f"block {site.block}: {method} leaves equally many tokens in each of {groups} {what}, so {site.keep} "
            f"of {site.tokens} cannot stay; {near} can"
        )
    return left // groups


def halve(method: str, site: Site, before: int, after: int, what: str) -> None:
    """Whether pairs can merge `before` into `after`. Raises: PlanError with the limits."""
    fewest = before - before // 2
    if not fewest <= after <= before:
        raise PlanError(
            f"block {site.block}: {method} leaves {fewest} to {before} of {before} {what} in one step, and "
            f"{site.keep} of {site.tokens} tokens would leave {after}"
        )


def start(op: Ops, taps: Taps, site: Site, metric: Value | None = None) -> Clip:
    """Return the unprotected tokens of a site; metric [B,N,D], None for the tokens themselves."""
    size = steps.sizes(op, taps, site)
    count = site.tokens - site.protect
    every = steps.numbered(op, taps.tokens, count)
    wide = op("Cast", taps.tokens, to=steps.FLOAT)
    tokens, size = (steps.free(op, value, site) for value in (wide, size))
    return Clip(tokens, size, tokens if metric is None else steps.free(op, metric, site), every, every, count)


def finish(op: Ops, taps: Taps, site: Site, clip: Clip, left: int) -> Reduction:
    """Put the protected tokens in front again; `left` frames are handed on."""
    state_ = state(op, left)
    tokens = op("CastLike", clip.tokens, taps.tokens)
    if not site.protect:
        return Reduction(tokens, clip.size, clip.position, clip.assign, state=state_)
    first = [np.array([0]), np.array([site.protect]), np.array([1])]
    head = steps.numbered(op, taps.tokens, site.protect)
    size = (
        steps.ones(op, taps.tokens, replace(site, tokens=site.protect))
        if taps.size is None
        else op("Slice", taps.size, *first)
    )
    shift = np.array(site.protect)
    return Reduction(
        op("Concat", op("Slice", taps.tokens, *first), tokens, axis=1),
        op("Concat", size, clip.size, axis=1),
        op("Concat", head, op("Add", clip.position, shift), axis=1),
        op("Concat", head, op("Add", clip.assign, shift), axis=1),
        state=state_,
    )


def combine(op: Ops, clip: Clip, keep: Value, source: Value, destination: Value, fold: Fold) -> Clip:
    """Merge inside every group: keep, source and destination [B*G,.] count from the group's first token."""
    tokens, size, metric = (fold.groups(op, value) for value in (clip.tokens, clip.size, clip.metric))
    merged, total = op("TokenCombine", tokens, size, keep, source, destination)
    own = clip.metric is clip.tokens
    mean = merged if own else op("TokenCombine", metric, size, keep, source, destination)[0]
    inner = Site(fold.before, fold.after, 0, 1, 1)
    local = steps.merged_map(op, tokens, keep, source, destination, inner)
    index = fold.places(op, keep, fold.after, fold.table(fold.before))
    assign = fold.places(op, local, fold.before, fold.table(fold.after))
    tokens = fold.joined(op, merged)
    return Clip(
        tokens,
        fold.joined(op, total),
        tokens if own else fold.joined(op, mean),
        op("GatherElements", clip.position, fold.by_output(op, index), axis=1),
        op("GatherElements", fold.by_input(op, assign), clip.assign, axis=1),
        fold.count * fold.after,
    )


@dataclass(frozen=True)
class Fold:
    """M tokens as `count` groups of `before` tokens, of which `after` stay.

    Groups are consecutive tokens; with `across` they are the tokens of one place in all frames instead, so that
    frames are merged: `count` places, `before` frames.
    """

    count: int
    before: int
    after: int
    across: bool = False

    def groups(self, op: Ops, value: Value) -> Value:
        """[B,M,D] -> [B*G,n,D]."""
        if self.across:
            value = op("Gather", value, self.table(self.before).ravel(), axis=1)
        return op("Reshape", value, np.array([-1, self.before, 0]))

    def joined(self, op: Ops, value: Value) -> Value:
        """[B*G,n',D] -> [B,M',D]."""
        value = op("Reshape", value, np.array([-1, self.count * self.after, 0]))
        return op("Gather", value, self._by_frame(self.after), axis=1) if self.across else value

    def places(self, op: Ops, local: Value, length: int, table: NDArray[np.int64]) -> Value:
        """Look up indices [B*G,length] within groups in a table [G,m] of places: [B,G*length]."""
        width = table.shape[1]
        flat = op("Reshape", local, np.array([-1, self.count, length]))
        flat = op("Add", flat, (np.arange(self.count) * width)[None, :, None])
        flat = op("Reshape", flat, np.array([-1, self.count * length]))
        return op("Gather", op.constant(table.ravel()), flat, axis=0) if self.across else flat

    def by_output(self, op: Ops, index: Value) -> Value:
        """[B,G*n'] in order of groups -> in order of the output."""
        return op("Gather", index, self._by_frame(self.after), axis=1) if self.across else index

    def by_input(self, op: Ops, index: Value) -> Value:
        """[B,G*n] in order of groups -> in order of the input."""
        return op("Gather", index, self._by_frame(self.before), axis=1) if self.across else index

    def table(self, length: int) -> NDArray[np.int64]:
        """[G,length]: the place of each member of each group among all, `length` members a group."""
        every = np.arange(self.count * length)
        return every.reshape(length, self.count).T if self.across else every.reshape(self.count, length)

    def _by_frame(self, length: int) -> NDArray[np.int64]:
        return np.arange(self.count * length).reshape(self.count, length).T.ravel()


def merge_inside(op: Ops, clip: Clip, groups: int, after: int, first: int, order: int) -> Clip:
    """Merge similar tokens inside each of `groups` groups of n consecutive tokens down to `after`.

    Bipartite matching as in ToMe: position `first` + i of a group's token i decides, even ones are sources and
    odd ones destinations. Output of a group: the unmerged sources, by position (order 0) or by descending
    similarity (1), then the destinations.
    """
    before = clip.count // groups
    if after == before:
        return clip
    fold = Fold(groups, before, after)
    _, keep, source, destination = op(
        "TokenMatch",
        fold.groups(op, clip.metric),
        sources=[i for i in range(before) if (first + i) % 2 == 0],
        destinations=[i for i in range(before) if (first + i) % 2 == 1],
        others=[],
        keep=after,
        remove=before - after,
        order=order,
    )
    return combine(op, clip, keep, source, destination, fold)
