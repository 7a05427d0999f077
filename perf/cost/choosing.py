"""Launches of the operators that choose: TokenSelect, TokenGroupSelect, TokenGreedySelect and TokenCoverSelect."""

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

ISOLATION_LARGE = 1024
"""Tokens from which on tiles are 64 rows instead of 32."""

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


def _turns(call: Call, tokens: int, rows: int) -> float:
    """Cycles of one block that chooses token by token and reads `rows` times all rows for each."""
    width = call.shapes[0][2]
    each = rows * tokens * width * call.item / constant("row_bytes_a_cycle") + pass_cycles(tokens, 512)
    return (call.size("keep") - call.size("protect")) * each


def greedy(call: Call) -> tuple[Launch, ...]:
    """TokenGreedySelect: metric [B,N,D], importance [B,N]."""
    batch, tokens, width = call.shapes[0]
    free, numbers = tokens - call.size("protect"), batch * tokens * SINGLE
    turns = call.size("keep") - call.size("protect")
    choose = Launch(
        "greedy::choose", batch, 512, _turns(call, free, 1), call.data + 4 * numbers,
        2.0 * batch * turns * free * width,
    )  # fmt: skip
    if call.size("seed") != FROM_ISOLATED:
        return (choose,)
    tile, threads = (64, 256) if free >= ISOLATION_LARGE else (32, 64)
    cycles = over(free, tile) * tile_cycles(width, call.item, threads)
    pairs = 2.0 * batch * free**2 * width
    return Launch(
        "greedy::isolation", over(free, tile) * batch, threads, cycles, call.data + numbers, pairs
    ), choose


def cover(call: Call) -> tuple[Launch, ...]:
    """TokenCoverSelect: metric [B,N,D], importance [B,N]."""
    batch, tokens, width = call.shapes[0]
    free, numbers = tokens - call.size("protect"), batch * tokens * SINGLE
    turns = call.size("keep") - call.size("protect")
    cycles = over(free, 32) * tile_cycles(width, call.item, 64)
    return (
        Launch(
            "cover::bounds", over(free, 32) * batch, 64, cycles, call.data + 4 * numbers,
            2.0 * batch * free**2 * width,
        ),
        Launch(
            "cover::choose", batch, 512, _turns(call, free, LOOKS), call.data + 8 * numbers,
            2.0 * LOOKS * batch * turns * free * width,
        ),
    )  # fmt: skip
