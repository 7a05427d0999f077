"""Average pooling of the grid, as one product with a constant matrix: the same cells for every picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, steps

Floats = NDArray[np.float32]


def grids(method: Method, site: Site) -> tuple[int, int, int]:
    """Frames, rows and columns of the unprotected tokens; an unknown layout is taken for a square. Raises: MethodError."""
    count = site.tokens - site.protect
    side = math.isqrt(count)
    if site.grid is None and side * side != count:
        raise steps.no_grid(method.name, site)
    rows, columns = (side, side) if site.grid is None else site.grid[-2:]
    return count // (rows * columns), rows, columns


def each_frame(method: Method, site: Site, frames: int) -> int:
    """How many of the K outputs belong to each frame. Raises: PlanError where they are no equal counts."""
    kept = site.keep - site.protect
    if kept % frames:
        below = site.keep - kept % frames
        near = [count for count in (below, below + frames) if site.protect < count < site.tokens]
        raise PlanError(
            f"method {method.name!r} leaves equally many tokens in each of {frames} frames, so {site.keep} of {site.tokens} "
            f"cannot stay; {' or '.join(map(str, near))} can"
        )
    return kept // frames


def pooled(op: Ops, taps: Taps, site: Site, down: Floats, across: Floats) -> Reduction:
    """Pool rows by down [h',h] and columns by across [w',w], whose entries are 1 inside a window and 0 outside, to means.

    Output order: protected, then the windows frame by frame in raster order, each at the place of its last cell. A cell in
    several windows is mapped to the first, one in none to -1. Padding is averaged with weight 0.
    """
    window = np.kron(down, across)
    frames = (site.tokens - site.protect) // window.shape[1]
    inside = np.kron(np.eye(frames, dtype=np.float32), window).astype(np.float32)
    tokens = clusters.plain(op, taps, site)
    if taps.padded:
        real = op("Cast", op("Greater", steps.free(op, taps.size, site), 0.0), to=steps.FLOAT)
        count = op("Max", op("MatMul", inside, real), 1.0)
        mean = op("Div", op("MatMul", inside, op("Mul", tokens, real)), count)
    else:
        mean = op(
            "Mul", op("MatMul", inside, tokens), (1 / inside.sum(axis=1, keepdims=True)).astype(np.float32)
        )
    last = inside.shape[1] - 1 - np.argmax(inside[:, ::-1] > 0, axis=1)
    went = np.where(inside.any(axis=0), np.argmax(inside > 0, axis=0), steps.DROPPED - site.protect)
    head = np.arange(site.protect)
    position = np.concatenate([head, site.protect + last])
    assign = np.concatenate([head, site.protect + went])
    owner = (assign[None] == np.arange(site.keep)[:, None]).astype(np.float32)
    size = op("MatMul", owner, steps.sizes(op, taps, site))
    return Reduction(
        clusters.ahead(op, taps, site, op("CastLike", mean, taps.tokens)),
        size,
        op.constant(position[None]),
        op.constant(assign[None]),
    )


def blocks(length: int, side: int) -> Floats:
    """Windows of `side` cells that do not overlap: [length // side, length]; cells beyond the last are in none."""
    place = np.arange(length) // side
    return np.asarray(np.arange(length // side)[:, None] == place[None], np.float32)


def adaptive(length: int, count: int) -> Floats:
    """`count` windows from floor(i length / count) to ceil((i + 1) length / count), which may overlap: [count, length]."""
    place, number = np.arange(length)[None], np.arange(count)[:, None]
    inside = (place >= number * length // count) & (place < -(-(number + 1) * length // count))
    return np.asarray(inside, np.float32)
