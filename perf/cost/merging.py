"""Launches of the operators that merge: TokenMatch, TokenCombine, TokenMerge and TokenRestore (plugins/kernels/token_*.cuh)."""

from __future__ import annotations

from dataclasses import replace

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.sizes import (
    INDEX,
    MMA_SLICE,
    SINGLE,
    SORT_MOST,
    Call,
    count_cycles,
    mma_cycles,
    over,
    pass_cycles,
    sort_cycles,
    sort_threads,
    tile_cycles,
)

MATCH_LARGE, MATCH_FILL = 512, 512
"""Sources from which on tiles are 64 rows of 256 threads instead of 32 of 64; blocks an image beyond which stretches of
destinations grow instead."""

MERGE_THREADS, MERGE_MIDDLE = 512 * 256, 1024
"""Threads of TokenMerge, all images together, beyond which each block takes several turns of survivors; sources above which a
block has 1,024 threads instead of 256."""

IMAGE_TILE, IMAGE_SOURCES = 64, 256
"""Where a cluster merges an image in one launch: rows of a tile, of which a block takes one; the most sources."""

SAVED, TURN, SLICE = 3500, 1500, 240
"""Cycles: what a launch costs beyond two barriers of a cluster, what each further turn of survivors costs, and each 128 bytes of
the metric's rows. One launch is taken while the latter two are no more than the first (merge_image.cuh)."""

FEWEST_FILTERED, MOST_FILTERED = 64, 4096
"""Columns from which on and up to which destinations are filtered on tensor cores (filter.cuh)."""

PART = 8
"""Bytes of the best of a stretch: a similarity and a place."""


def _similarity(call: Call) -> tuple[Launch, int]:
    """The launch that compares sources with destinations by a metric [B,N,D], and the stretches it divides these into."""
    (batch, _, width), sources = call.shapes[0], len(call.attributes["sources"])
    targets = len(call.attributes["destinations"])
    tile, threads = (64, 256) if sources >= MATCH_LARGE and width * call.item % 16 == 0 else (32, 64)
    rows, tiles = over(sources, tile), over(targets, tile)
    stretch = over(tiles, min(tiles, over(MATCH_FILL, rows)))
    stretches = over(tiles, stretch)
    blocks, products = rows * stretches * batch, 2.0 * batch * sources * targets * width
    if _filters(width, call.item):
        settled = width * constant("settle_cycles")
        cycles = stretch * (mma_cycles(width, call.item, tile) + constant("candidate_cycles")) + settled
        operations, products = 6.0 * batch * sources * stretches * width, products * call.item / 2
    else:
        cycles, operations, products = stretch * tile_cycles(width, call.item, threads), products, 0
    moved = call.data + batch * stretches * sources * PART
    launch = Launch("match::similarity", blocks, threads, cycles, moved, operations, products)
    return launch, stretches


def _filters(width: int, item: int) -> bool:
    """Whether rows of so many columns are compared on tensor cores."""
    return FEWEST_FILTERED <= width <= MOST_FILTERED and width * item % 16 == 0


def _rank_cycles(sources: int, stretches: int, threads: int) -> float:
    """Cycles in which a block sorts the sources by the best of their stretches and numbers those that stay (pairs.cuh)."""
    joining = _joining_cycles(sources, stretches, threads)
    return joining + sort_cycles(sources, threads) + pass_cycles(sources, threads)


def _joining_cycles(sources: int, stretches: int, threads: int) -> float:
    return (constant("load_cycles") + constant("step_cycles") * stretches) * over(sources, threads)


def match(call: Call) -> tuple[Launch, ...]:
    """TokenMatch: metric [B,N,D]."""
    (similarity, stretches), batch = _similarity(call), call.shapes[0][0]
    sources, kept, leave = len(call.attributes["sources"]), call.size("keep"), call.size("remove")
    parts, values = batch * stretches * sources * PART, batch * sources * SINGLE
    lists = batch * (kept + 2 * leave) * INDEX
    if sources <= SORT_MOST:
        own = sort_threads(sources)
        cycles = _rank_cycles(sources, stretches, own)
        return similarity, Launch("match::finish", batch, own, cycles, parts + values + lists)
    counted = _joining_cycles(sources, stretches, 128) + count_cycles(sources)
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


def merge(call: Call) -> tuple[Launch, ...]:
    """TokenMerge: tokens [B,N,C], size [B,N,1], metric [B,N,D]."""
    batch, kept, leave = call.shapes[0][0], call.size("keep"), call.size("remove")
    paired = replace(call, shapes=call.shapes[2:])
    matched = match(paired)
    lists = [(batch, kept), (batch, leave), (batch, leave)]
    (joined,) = combine(replace(call, shapes=[*call.shapes[:2], *lists]))
    sources = len(call.attributes["sources"])
    if sources > SORT_MOST:
        return *matched, joined
    at_once = _at_once(call, joined)
    if at_once is not None:
        return (at_once,)
    (similarity, stretches), across = _similarity(paired), joined.blocks // over(kept, 8)
    threads = 1024 if sources > MERGE_MIDDLE else 256
    tiles = over(kept, threads // 32)
    turns = over(tiles, max(MERGE_THREADS // threads // across, 1))
    last = Launch(
        "combine::merge_pairs", across * over(tiles, turns), threads,
        _rank_cycles(sources, stretches, threads) + turns * joined.cycles,
        matched[1].bytes + joined.bytes, joined.operations,
    )  # fmt: skip
    return similarity, last


def _at_once(call: Call, joined: Launch) -> Launch | None:
    """The one launch of clusters by which the GPU of the call merges (merge_image.cuh); joined: what TokenCombine launches."""
    (batch, _, channels), (_, _, width) = call.shapes[0], call.shapes[2]
    sources, targets = len(call.attributes["sources"]), len(call.attributes["destinations"])
    stretches, parts = over(targets, IMAGE_TILE), joined.blocks // batch
    blocks = 0 if call.chip is None else call.chip.cluster
    if call.chip is None or blocks * batch > call.chip.multiprocessors or sources > IMAGE_SOURCES:
        return None
    if over(sources, IMAGE_TILE) * stretches > blocks or channels * call.item % 16 != 0:
        return None
    turns, slices = over(parts, max(blocks, 1)), over(width * call.item, MMA_SLICE)
    if not _filters(width, call.item) or TURN * (turns - 1) + SLICE * slices > SAVED:
        return None
    compared = mma_cycles(width, call.item, IMAGE_TILE) + constant("candidate_cycles")
    ranked = constant("remote_cycles") - constant("load_cycles") + _rank_cycles(sources, stretches, 256)
    settled = width * constant("settle_cycles") + constant("cluster_cycles")
    lists = batch * (sources * SINGLE + (call.size("keep") + 2 * call.size("remove")) * INDEX)
    return Launch(
        "combine::merge_image", blocks * batch, 256, compared + settled + ranked + turns * joined.cycles,
        replace(call, shapes=call.shapes[2:]).data + lists + joined.bytes,
        6.0 * batch * sources * stretches * width + joined.operations,
        batch * sources * targets * width * float(call.item),
    )  # fmt: skip


def restore(call: Call) -> tuple[Launch, ...]:
    """TokenRestore: tokens [B,K,C], source_map [B,N]."""
    (batch, kept, width), wanted = call.shapes[0], call.shapes[1][1]
    moved = batch * ((min(kept, wanted) + wanted) * width * call.item + wanted * INDEX)
    return (Launch("gather::copy_rows", over(batch * wanted, 8), 256, 4 * constant("load_cycles"), moved),)
