"""Launches of the operators that choose: TokenSelect, TokenGroupSelect, and those that choose one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokenrt.perf.cost.chip import constant
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.sizes import (
    INDEX,
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

GRAM_MOST, GRAM_LARGE, GRAM_WORKSPACE = 4096, 1024, 1 << 28
"""Free tokens up to which the cosines of all pairs are held, from which on their tiles are 64 rows instead of 32, and bytes of
the images that are held at once."""

BY_SCORE, FROM_ISOLATED = 1, 2
ROUNDS = 5
"""Passes of a radix search over the scores: four of eight bits, and one that numbers."""

LOOKS = 2
"""Rows that TokenCoverSelect looks at for each token it chooses; what the bounds leave depends on the tokens."""


def chosen(
    batch: int, tokens: int, keep: int, protect: int, order: int, *, item: int = SINGLE
) -> tuple[Launch, ...]:
    """The K best of N scores by order, as TokenSelect and TokenPeaks launch it."""
    scores, index = batch * tokens * item, batch * keep * INDEX
    if tokens <= SORT_MOST:
        threads = sort_threads(tokens - protect)
        cycles = sort_cycles(tokens - protect, threads) + pass_cycles(tokens, threads)
        return (Launch("select::sorted", batch, threads, cycles, scores + index),)
    found = Launch("select::by_position", batch, 512, ROUNDS * pass_cycles(tokens, 512), scores + index)
    if order != BY_SCORE:
        return (found,)
    blocks = over(keep - protect, 512) * batch
    return found, Launch("select::by_score", blocks, 512, count_cycles(keep), scores + 2 * index)


def select(call: Call) -> tuple[Launch, ...]:
    """TokenSelect: score [B,N]."""
    batch, tokens = call.shapes[0]
    return chosen(batch, tokens, call.size("keep"), call.size("protect"), call.size("order"), item=call.item)


def group_select(call: Call) -> tuple[Launch, ...]:
    """TokenGroupSelect: score [B,N], a block for each of G groups."""
    (batch, tokens), lengths = call.shapes[0], call.attributes["lengths"]
    longest, moved = max(lengths), batch * (tokens * call.item + call.size("keep") * INDEX)
    return (Launch("select::by_group", len(lengths) * batch, 128, ROUNDS * pass_cycles(longest, 128), moved),)


def cosines(kernel: str, call: Call, batch: int, tokens: int) -> Launch:
    """Those of all pairs of so many tokens, in memory; halves whose rows are whole vectors on tensor cores: gram.cuh."""
    width, whole = call.shapes[0][2], call.shapes[0][2] * call.item % 16 == 0
    tile, threads = (64, 256) if whole and tokens >= GRAM_LARGE else (32, 64)
    moved = batch * (tokens * width * call.item + tokens**2 * SINGLE)
    blocks, operations = over(tokens, tile) ** 2 * batch, 2.0 * batch * tokens**2 * width
    if whole and call.item < SINGLE:
        cycles = mma_cycles(width, call.item, tile)
        return Launch(kernel, blocks, threads, cycles, moved, products=operations)
    return Launch(kernel, blocks, threads, tile_cycles(width, call.item, threads), moved, operations)


def _free(call: Call) -> int:
    """Tokens that are not protected."""
    return call.shapes[0][1] - call.size("protect")


def _pairs(call: Call, batch: int) -> Launch:
    """The cosines that a turn then reads a row of."""
    return cosines("gram::cosines", call, batch, _free(call))


def _choice(call: Call, kernel: str, batch: int, looks: int) -> Launch:
    """One block an image that chooses token by token, over rows of cosines."""
    free, turns = _free(call), call.size("keep") - call.size("protect")
    each = 2 * constant("load_cycles") + 2 * pass_cycles(free, 512)
    moved = batch * (looks * turns * free * SINGLE + call.size("keep") * INDEX)
    return Launch(kernel, batch, 512, looks * turns * each, moved, 2.0 * batch * looks * turns * free)


def _by_rows(call: Call, images: Callable[[int], tuple[Launch, ...]]) -> tuple[Launch, ...]:
    """The launches of as many images at once as the workspace holds the cosines of, and of the rest."""
    batch, free = call.shapes[0][0], _free(call)
    at_once = GRAM_WORKSPACE // (SINGLE * 4 * over(free, 4) * (free + over(free, 32)))
    full, rest = divmod(batch, at_once)
    return images(at_once) * full + (images(rest) if rest else ())


def _turns(call: Call, looks: int) -> float:
    """Cycles of one block that reads all rows again for each token it chooses, as images too large for cosines do."""
    width, free = call.shapes[0][2], _free(call)
    each = looks * free * width * call.item / constant("row_bytes_a_cycle") + pass_cycles(free, 512)
    return (call.size("keep") - call.size("protect")) * each


def _long(call: Call, kernel: str, looks: int, numbers: int) -> Launch:
    batch, tokens, width = call.shapes[0]
    turns = call.size("keep") - call.size("protect")
    return Launch(
        kernel, batch, 512, _turns(call, looks), call.data + numbers * batch * tokens * SINGLE,
        2.0 * looks * batch * turns * tokens * width,
    )  # fmt: skip


def _compared(call: Call, kernel: str, large: bool) -> Launch:
    """A tile of tokens a block, against all others."""
    batch, tokens, width = call.shapes[0]
    free = _free(call)
    tile, threads = (64, 256) if large else (32, 64)
    cycles = over(free, tile) * tile_cycles(width, call.item, threads)
    moved = call.data + 4 * batch * tokens * SINGLE
    return Launch(kernel, over(free, tile) * batch, threads, cycles, moved, 2.0 * batch * free**2 * width)


def greedy(call: Call) -> tuple[Launch, ...]:
    """TokenGreedySelect: metric [B,N,D], importance [B,N]."""
    if _free(call) <= GRAM_MOST:
        return _by_rows(call, lambda n: (_pairs(call, n), _choice(call, "greedy::choose_by_rows", n, 1)))
    choose = _long(call, "greedy::choose", 1, 4)
    isolated = call.size("seed") == FROM_ISOLATED
    return (_compared(call, "greedy::isolation", True), choose) if isolated else (choose,)


def cover(call: Call) -> tuple[Launch, ...]:
    """TokenCoverSelect: metric [B,N,D], importance [B,N]."""
    free = _free(call)

    def images(count: int) -> tuple[Launch, ...]:
        cycles = 2 * constant("load_cycles") + pass_cycles(free, 512)
        moved = count * free**2 * SINGLE
        bounds = Launch("cover::bounds_by_rows", free * count, 512, cycles, moved, 2.0 * count * free**2)
        return _pairs(call, count), bounds, _choice(call, "cover::choose_by_rows", count, LOOKS)

    if free <= GRAM_MOST:
        return _by_rows(call, images)
    return _compared(call, "cover::bounds", False), _long(call, "cover::choose", LOOKS, 8)


def determinant(call: Call) -> tuple[Launch, ...]:
    """TokenDeterminantSelect: metric [B,N,D], importance [B,N]. A turn reads a row of each turn before, too."""
    free, turns = _free(call), call.size("keep") - call.size("protect")
    rows = turns * (turns - 1) / 2
    read = free * SINGLE / constant("row_bytes_a_cycle")

    def images(count: int) -> tuple[Launch, ...]:
        choice = _choice(call, "determinant::choose", count, 1)
        cycles = choice.cycles + turns * constant("load_cycles") + rows * read
        moved, operations = choice.bytes + count * rows * free * SINGLE, 2.0 * count * rows * free
        return _pairs(call, count), replace(
            choice, cycles=cycles, bytes=moved, operations=choice.operations + operations
        )

    return _by_rows(call, images)
