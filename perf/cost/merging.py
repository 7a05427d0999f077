"""Launches of the operators that merge: TokenMatch, TokenCombine and TokenRestore (plugins/kernels/token_*.cuh)."""

from __future__ import annotations

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.sizes import (
    INDEX,
    SINGLE,
    SORT_MOST,
    Call,
    count_cycles,
    over,
    pass_cycles,
    sort_cycles,
    sort_threads,
    tile_cycles,
)

MATCH_LARGE, MATCH_FILL = 512, 512
"""Sources from which on tiles are 64 rows of 256 threads instead of 32 of 64; blocks an image beyond which stretches of
destinations grow instead."""

PART = 8
"""Bytes of the best of a stretch: a similarity and a place."""


def match(call: Call) -> tuple[Launch, ...]:
    """TokenMatch: metric [B,N,D]."""
    (batch, _, width), sources = call.shapes[0], len(call.attributes["sources"])
    targets, kept, leave = len(call.attributes["destinations"]), call.size("keep"), call.size("remove")
    tile, threads = (64, 256) if sources >= MATCH_LARGE and width * call.item % 16 == 0 else (32, 64)
    rows, tiles = over(sources, tile), over(targets, tile)
    stretch = over(tiles, min(tiles, over(MATCH_FILL, rows)))
    stretches = over(tiles, stretch)
    parts, values = batch * stretches * sources * PART, batch * sources * SINGLE
    lists = batch * (kept + 2 * leave) * INDEX
    joining = constant("load_cycles") + constant("step_cycles") * stretches
    similarity = Launch(
        "match::similarity", rows * stretches * batch, threads,
        stretch * tile_cycles(width, call.item, threads), call.data + parts, 2.0 * batch * sources * targets * width,
    )  # fmt: skip
    if sources <= SORT_MOST:
        own = sort_threads(sources)
        cycles = joining * over(sources, own) + sort_cycles(sources, own) + pass_cycles(sources, own)
        return similarity, Launch("match::finish", batch, own, cycles, parts + values + lists)
    counted = joining * over(sources, 128) + count_cycles(sources)
    return (
        similarity,
        Launch("match::rank", over(sources, 128) * batch, 128, counted, parts + 2 * values + lists),
        Launch("match::arrange", batch, 128, pass_cycles(sources, 128), values + batch * kept * INDEX),
    )


def combine(call: Call) -> tuple[Launch, ...]:
    """TokenCombine: tokens [B,N,C], size [B,N,1], keep [B,K], source and destination [B,R]."""
    (batch, tokens, width), kept, leave = call.shapes[0], call.shapes[2][1], call.shapes[3][1]
    vector = 16 // call.item if width * call.item % 16 == 0 else 1
    blocks = over(kept, 8) * over(width, 64 * vector) * batch
    moved = batch * ((tokens + kept) * (width * call.item + SINGLE) + (kept + 2 * leave) * INDEX)
    cycles = 5 * constant("load_cycles") + 20 * over(leave, 32)
    return (Launch("combine::merge", blocks, 256, cycles, moved, 2 * batch * tokens * width),)


def restore(call: Call) -> tuple[Launch, ...]:
    """TokenRestore: tokens [B,K,C], source_map [B,N]."""
    (batch, kept, width), wanted = call.shapes[0], call.shapes[1][1]
    moved = batch * ((min(kept, wanted) + wanted) * width * call.item + wanted * INDEX)
    return (Launch("gather::copy_rows", over(batch * wanted, 8), 256, 4 * constant("load_cycles"), moved),)
