"""Steps of methods that compare the frames of a clip place by place, at a model's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import clips, clusters, scores, steps

LEAST_LENGTH = 1e-8
"""Floor of the lengths that a cosine is divided by, as in torch."""


def split(method: str, option: int, site: Site) -> tuple[int, int]:
    """Frames F and tokens a frame n of the unprotected tokens; F is the option, else the grid's, else one. Raises: PlanError."""
    count = option or clips.of_grid(site.grid) or 1
    return count, clips.inside(method, site, count)


def folded(op: Ops, taps: Taps, site: Site, count: int) -> Value:
    """The unprotected tokens as [B,F,n,C] float32; what is not finite counts as 0, and so does padding."""
    rows = clusters.finite(op, clusters.plain(op, taps, site))
    if taps.padded:
        rows = op("Where", op("Greater", steps.free(op, taps.size, site), 0.0), rows, 0.0)
    each = (site.tokens - site.protect) // count
    width = op("Slice", op("Shape", rows), np.array([2]), np.array([3]))
    return op("Reshape", rows, op("Concat", np.array([-1, count, each]), width, axis=0))


def likeness(op: Ops, rows: Value, left: Sequence[int], right: Sequence[int]) -> Value:
    """Cosines [B,M,n] of each place of frame left[m] with the same place of frame right[m], of rows [B,F,n,C]."""
    one, other = (op("Gather", rows, np.array(which), axis=1) for which in (left, right))
    length = op(
        "Max", op("Sqrt", op("ReduceSum", op("Mul", rows, rows), steps.LAST, keepdims=0)), LEAST_LENGTH
    )
    near, far = (op("Gather", length, np.array(which), axis=1) for which in (left, right))
    product = op("ReduceSum", op("Mul", one, other), steps.LAST, keepdims=0)
    return op("Div", product, op("Mul", near, far))


def present(op: Ops, taps: Taps, site: Site, count: int) -> Value | None:
    """[B,F,n] float32, 1 for tokens and 0 for padding; None where nothing is padding."""
    there = scores.present(op, taps)
    if there is None:
        return None
    return op(
        "Reshape", steps.free(op, there, site), np.array([-1, count, (site.tokens - site.protect) // count])
    )


def at_least_whole(method: str, site: Site, each: int) -> None:
    """Raise PlanError where fewer tokens stay than one frame has."""
    if site.keep - site.protect < each:
        raise PlanError(
            f"block {site.block}: {method} keeps the first frame whole, {each} tokens beside the {site.protect} protected "
            f"ones, so {site.keep} of {site.tokens} cannot stay; keep {site.protect + each} or more, or say with "
            f"{clips.FRAMES_OPTION} how many frames the clip has"
        )
