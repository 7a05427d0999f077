"""Launches of the operators that cluster: TokenCluster, TokenPeaks, TokenMeans and TokenMedoids."""

from __future__ import annotations

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.choosing import BY_SCORE, GRAM_LARGE, GRAM_MOST, GRAM_WORKSPACE, chosen, cosines
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.merging import MATCH_FILL, PART
from tokenrt.perf.cost.sizes import INDEX, SINGLE, Call, over, pass_cycles, tile_cycles

CLUSTER_LONG = 1024
"""Tokens above which one block of 512 threads merges."""

CLUSTER_WORKSPACE = 1 << 30
"""Bytes of similarities that are held at once: images beyond take their turn, in launches of their own."""

TILE, THREADS = 32, 64
"""Rows of a tile, and its threads, where distances are compared."""


def cluster(call: Call) -> tuple[Launch, ...]:
    """TokenCluster: metric [B,N,D]."""
    batch, tokens, _ = call.shapes[0]
    at_once = max(CLUSTER_WORKSPACE // (SINGLE * (tokens**2 + 4 * tokens)), 1)
    full, rest = divmod(batch, at_once)
    return _clustered(call, at_once) * full + (_clustered(call, rest) if rest else ())


def _clustered(call: Call, batch: int) -> tuple[Launch, ...]:
    """The launches of images whose similarities are held at once."""
    _, tokens, _ = call.shapes[0]
    like, state = batch * tokens**2 * SINGLE, 6 * batch * tokens * SINGLE
    merges = tokens - call.size("keep")
    each = constant("merge_cycles") + constant("look_cycles") * over(tokens, 256)
    return (
        cosines("cluster::compare", call, batch, tokens),
        Launch("cluster::merge", batch, 512 if tokens > CLUSTER_LONG else 256, merges * each, like + state),
    )


def _compared(kernel: str, call: Call, against: int, bytes_more: float = 0, stretches: int = 1) -> Launch:
    """A tile of tokens and a stretch of `against` rows a block, by distance."""
    batch, tokens, width = call.shapes[0]
    cycles = over(over(against, TILE), stretches) * tile_cycles(width, call.item, THREADS, distances=True)
    operations = 3.0 * batch * tokens * against * width
    moved = call.data + bytes_more + stretches * batch * tokens * PART
    return Launch(kernel, over(tokens, TILE) * stretches * batch, THREADS, cycles, moved, operations)


def _joined(kernel: str, call: Call, keep: int, bytes_more: float) -> Launch:
    """Tokens and the nearest of K centres, these in as many stretches as fill a GPU: parts.cuh."""
    rows, tiles = over(call.shapes[0][1], TILE), over(keep, TILE)
    stretch = over(tiles, min(tiles, over(MATCH_FILL, rows)))
    return _compared(kernel, call, keep, bytes_more, over(tiles, stretch))


def _settled(batch: int, tokens: int) -> Launch:
    """The nearest over the stretches."""
    cycles = 2 * constant("load_cycles")
    return Launch("nearest::settle", over(tokens, 128) * batch, 128, cycles, batch * tokens * (PART + INDEX))


def peaks(call: Call) -> tuple[Launch, ...]:
    """TokenPeaks: metric [B,N,D]."""
    batch, tokens, _ = call.shapes[0]
    if tokens <= GRAM_MOST:
        at_once = GRAM_WORKSPACE // (SINGLE * 4 * over(tokens, 4) * (tokens + over(tokens, 32)))
        full, rest = divmod(batch, at_once)
        return _peaks_by_rows(call, at_once) * full + (_peaks_by_rows(call, rest) if rest else ())
    keep, each = call.size("keep"), batch * tokens * SINGLE
    center = batch * keep * INDEX
    return (
        _compared("peaks::density", call, tokens, each),
        _compared("peaks::gaps", call, tokens, 3 * each),
        Launch("peaks::rate", batch, 256, 2 * pass_cycles(tokens, 256), 4 * each),
        *chosen(batch, tokens, keep, 0, BY_SCORE),
        _compared("nearest::center", call, keep, center),
        _settled(batch, tokens),
        Launch("peaks::own", over(keep, 256) * batch, 256, 2 * constant("load_cycles"), 2 * center),
    )


def _peaks_by_rows(call: Call, batch: int) -> tuple[Launch, ...]:
    """The launches of images whose distances are held at once, of which each step reads rows, a warp a row."""
    _, tokens, width = call.shapes[0]
    keep, each, pairs = call.size("keep"), batch * tokens * SINGLE, batch * tokens**2 * SINGLE
    large = tokens >= GRAM_LARGE and width * call.item % 16 == 0
    tile, threads = (64, 256) if large else (TILE, THREADS)

    def rows(kernel: str, looks: int, moved: float) -> Launch:
        cycles = 2 * constant("load_cycles") + pass_cycles(looks, 32)
        return Launch(kernel, over(tokens, 4) * batch, 128, cycles, moved)

    return (
        Launch(
            "distances::between", over(tokens, tile) ** 2 * batch, threads,
            tile_cycles(width, call.item, threads, distances=True),
            batch * tokens * width * call.item + pairs, 3.0 * batch * tokens**2 * width,
        ),
        rows("peaks::density_by_rows", 2 * tokens, pairs + each),
        rows("peaks::gaps_by_rows", tokens, pairs + 3 * each),
        Launch("peaks::rate", batch, 256, 2 * pass_cycles(tokens, 256), 4 * each),
        *chosen(batch, tokens, keep, 0, BY_SCORE),
        rows("peaks::assign_by_rows", keep, batch * (keep * tokens * SINGLE + (keep + tokens) * INDEX)),
    )  # fmt: skip


def _arranged(batch: int, tokens: int) -> Launch:
    """Tokens in the order of their clusters: rounds.cuh."""
    cycles = 2 * constant("load_cycles") + 6 * tokens
    return Launch(
        "rounds::arrange", over(tokens, 256) * batch, 256, cycles, batch * tokens * (INDEX + 2 * SINGLE)
    )


def means(call: Call) -> tuple[Launch, ...]:
    """TokenMeans: metric [B,N,D], weight [B,N], start [B,K]."""
    (batch, tokens, width), keep = call.shapes[0], call.shapes[2][1]
    centers, assign = batch * keep * width * SINGLE, batch * tokens * INDEX
    members = over(tokens, keep)
    stretches = over(width, 32 * (16 // call.item))
    begin = Launch("means::begin", over(keep, 4) * batch, 128, 2 * constant("load_cycles"), 2 * centers)
    around = (
        _joined("means::join", call, keep, centers),
        _arranged(batch, tokens),
        Launch(
            "means::move", keep * stretches * batch, 128, (4 + members) * constant("load_cycles"),
            call.data + 2 * centers + 2 * assign, 3.0 * batch * tokens * width,
        ),
    )  # fmt: skip
    return begin, *around * call.size("rounds")


def medoids(call: Call) -> tuple[Launch, ...]:
    """TokenMedoids: metric [B,N,D], weight [B,N], start [B,K]."""
    (batch, tokens, width), keep = call.shapes[0], call.shapes[2][1]
    start, numbers = batch * keep * INDEX, batch * tokens * SINGLE
    begin = Launch("medoids::begin", over(keep, 256) * batch, 256, 2 * constant("load_cycles"), 2 * start)
    join = _joined("nearest::center", call, keep, start)
    tiles = over(tokens, TILE)
    stretch = over(tiles, min(tiles, over(MATCH_FILL, tiles)))
    stretches = over(tiles, stretch)
    costs = Launch(
        "medoids::costs", tiles * stretches * batch, THREADS,
        min(stretch, 2) * tile_cycles(width, call.item, THREADS, distances=True),
        call.data + (3 + stretches) * numbers, 3.0 * batch * tokens * TILE * width,
    )  # fmt: skip
    move = Launch(
        "medoids::move", over(keep, 8) * batch, 256,
        4 * constant("load_cycles") + stretches * constant("step_cycles"), (2 + stretches) * numbers + start,
    )  # fmt: skip
    return (
        begin,
        *(join, _arranged(batch, tokens), costs, move) * call.size("rounds"),
        join,
        _settled(batch, tokens),
    )
