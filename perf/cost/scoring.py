"""Launches of TokenScore: a few rows of attention, or all of them."""

from __future__ import annotations

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.sizes import SINGLE, Call, over, tile_cycles

FEW = 4
"""Rows up to which each is a pass over the keys."""

STRETCH, TILE, THREADS = 512, 64, 256


def score(call: Call) -> tuple[Launch, ...]:
    """TokenScore: queries and keys [B,H,N,D], rows first_row to end_row."""
    batch, heads, tokens, width = call.shapes[0]
    rows, images = call.size("end_row") - call.size("first_row"), batch * heads
    logits, mean = images * rows * tokens * SINGLE, batch * tokens * SINGLE
    queries = images * rows * width * call.item
    blocks, adding = over(tokens, 256) * batch, 2 * constant("load_cycles") + 30.0 * heads
    if rows <= FEW:
        stretches = over(tokens, STRETCH)
        cycles = 800 + 200.0 * rows * over(min(tokens, STRETCH), 32)
        return (
            Launch(
                "score::few", stretches * images, THREADS, cycles, call.data + queries + logits,
                2.0 * images * rows * tokens * width,
            ),
            Launch("score::few_mean", blocks, THREADS, rows * adding, logits + mean),
        )  # fmt: skip
    products = 2.0 * images * rows * tokens * width
    states, sums = 2 * images * rows * SINGLE, images * tokens * SINGLE
    tile = tile_cycles(width, call.item, THREADS) + 400
    return (
        Launch(
            "score::row_statistics", over(rows, TILE) * images, THREADS, over(tokens, TILE) * tile,
            call.data + queries + states, products,
        ),
        Launch(
            "score::column_sums", over(tokens, TILE) * images, THREADS, over(rows, TILE) * tile,
            call.data + queries + states + sums, products,
        ),
        Launch("score::many_mean", blocks, THREADS, adding, sums + mean),
    )  # fmt: skip
