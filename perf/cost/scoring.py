"""Launches of TokenScore: a few rows of attention, or all of them (plugins/kernels/score_few.cuh and score_many.cuh)."""

from __future__ import annotations

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.sizes import SINGLE, Call, mma_cycles, over, tile_cycles

FEW, FEW_LONG = 4, 1024
"""Rows up to which each is a pass over the keys, and tokens above which a block takes 256 keys instead of 64."""

TILE, THREADS, MEAN_THREADS = 64, 256, 64
FILL = 264
"""Blocks an image that divide the tiles into shorter stretches, where all rows are scored."""


def score(call: Call) -> tuple[Launch, ...]:
    """TokenScore: queries and keys [B,H,N,D], rows first_row to end_row."""
    rows = call.size("end_row") - call.size("first_row")
    return _few(call, rows) if rows <= FEW else _many(call, rows)


def _few(call: Call, rows: int) -> tuple[Launch, ...]:
    batch, heads, tokens, width = call.shapes[0]
    images, stretch = batch * heads, 256 if tokens > FEW_LONG else 64
    logits, mean = images * rows * tokens * SINGLE, batch * tokens * SINGLE
    queries = images * rows * width * call.item
    cycles = 800 + 200.0 * rows * over(stretch, 32)
    adding = rows * _adding(heads) + 30.0 * rows * over(tokens, stretch)
    return (
        Launch(
            "score::few", over(tokens, stretch) * images, THREADS, cycles, call.data + queries + logits,
            2.0 * images * rows * tokens * width,
        ),
        Launch("score::few_mean", over(tokens, MEAN_THREADS) * batch, MEAN_THREADS, adding, logits + mean),
    )  # fmt: skip


def _many(call: Call, rows: int) -> tuple[Launch, ...]:
    batch, heads, tokens, width = call.shapes[0]
    images, queries = batch * heads, batch * heads * rows * width * call.item
    row_tiles, column_tiles = over(rows, TILE), over(tokens, TILE)
    across, columns = _divided(column_tiles, row_tiles * heads)
    along, stretches = _divided(row_tiles, column_tiles * heads)
    states = 2 * images * rows * columns * SINGLE
    sums = images * tokens * stretches * SINGLE
    logits, products = images * rows * tokens, 2.0 * images * rows * tokens * width
    exponentials, each = 2 * constant("logit_cycles") * logits, TILE**2 / 128 * constant("logit_cycles")
    if call.item == 2 and width * call.item % 16 == 0:
        operations, tile = exponentials, mma_cycles(width, call.item, TILE) + each
    else:
        operations, tile = exponentials + products, tile_cycles(width, call.item, THREADS) + each
        products = 0
    last = _adding(heads * stretches)
    return (
        Launch(
            "score::row_statistics", row_tiles * columns * images, THREADS, across * tile,
            call.data + queries + states, operations, products,
        ),
        Launch(
            "score::column_sums", column_tiles * stretches * images, THREADS, along * tile + last,
            call.data + queries + states + 2 * sums + batch * tokens * SINGLE, operations, products,
        ),
    )  # fmt: skip


def _divided(tiles: int, blocks: int) -> tuple[int, int]:
    """How one side of the tiles is divided: tiles of a stretch, and stretches."""
    stretch = over(tiles, min(tiles, over(FILL, blocks)))
    return stretch, over(tiles, stretch)


def _adding(count: int) -> float:
    """Cycles in which a thread adds up so many numbers, a load each."""
    return 2 * constant("load_cycles") + 30.0 * count
