"""How the kernels fill a GPU: launches of an operator, and blocks, at batch 1 for the sizes of usual models.

A GPU has up to 132 multiprocessors; a launch that has as many tiles of work starts at least as many blocks.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import needs_compiler
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.recorder import Job, like, recorded

pytestmark = needs_compiler

CHIP = 132
"""Multiprocessors of the largest GPU that is aimed at (H100 SXM)."""

TOKENS = (197, 577, 729, 4096)
"""Of ViT at 224, ViT-L at 336, SigLIP at 384, SAM."""


def kernels_of(job: Job) -> list[str]:
    return [start.kernel.partition("<")[0] for start in job.launches]


def filled(job: Job, tiles: int) -> bool:
    return job.most_blocks >= min(CHIP, tiles)


def select(tokens: int, order: int, batch: int = 1) -> Job:
    attributes = {"keep": [tokens // 2], "protect": [1], "order": order}
    return recorded("TokenSelect", [like((batch, tokens), "float16")], attributes)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_selection_is_one_launch_of_a_block_an_image(tokens: int, order: int) -> None:
    for batch in (1, 32):
        job = select(tokens, order, batch)
        assert kernels_of(job) == ["select::sorted"]
        assert job.most_blocks == batch


def test_a_row_too_long_to_sort_takes_a_second_launch_by_score() -> None:
    assert kernels_of(select(4097, 0)) == ["select::by_position"]
    assert kernels_of(select(4097, 1)) == ["select::by_position", "select::by_score"]


def match(tokens: int, width: int, batch: int = 1) -> Job:
    return recorded("TokenMatch", [like((batch, tokens, width), "float16")], alternate(tokens, 1, 8, 0))


@pytest.mark.parametrize("width", [64, 384])
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_match_is_two_launches_over_tiles_of_sources_and_destinations(tokens: int, width: int) -> None:
    """Tiles of 32 x 32, and of 64 x 64 from 512 sources on."""
    job = match(tokens, width)
    assert kernels_of(job) == ["match::similarity", "match::finish"]
    side = 32 if tokens < 1024 else 64
    sources = tokens // 2
    tiles = ceil(sources / side) * ceil((tokens - 1 - sources) / side)
    assert filled(job, tiles)
    assert job.launches[1].grid == (1, 1, 1)
    assert match(tokens, width, 32).most_blocks == 32 * job.most_blocks


def test_stretches_of_destinations_grow_where_sources_fill_a_gpu() -> None:
    """The bests of 128 tiles of destinations are never more than 512 blocks an image leave: 2 MB at 8,192 sources."""
    job = match(16384, 64)
    assert kernels_of(job) == ["match::similarity", "match::rank", "match::arrange"]
    assert CHIP <= job.most_blocks <= 2 * 512
    assert job.workspace < 2**21


WIDTHS = {197: 384, 577: 1024, 729: 1152, 4096: 768}
"""Channels of ViT-S, ViT-L, SigLIP and SAM-B."""


def merge(tokens: int, width: int, batch: int = 1) -> Job:
    shapes = (batch, tokens, WIDTHS[tokens]), (batch, tokens, 1), (batch, tokens, width)
    inputs = [
        like(shape, kind) for shape, kind in zip(shapes, ("float16", "float32", "float16"), strict=True)
    ]
    return recorded("TokenMerge", inputs, {**alternate(tokens, 1, 8, 0), "type": 10})


@pytest.mark.parametrize("width", [64, 384])
@pytest.mark.parametrize("tokens", TOKENS)
def test_a_merge_is_two_launches_of_which_the_second_ranks_and_combines(tokens: int, width: int) -> None:
    """A block takes 8 survivors and 512 channels of fp16, 32 survivors from 1,025 sources on, and more by turns."""
    job = merge(tokens, width)
    assert kernels_of(job) == ["match::similarity", "combine::merge_pairs"]
    assert job.launches[0] == match(tokens, width).launches[0]
    threads = 256 if tokens < 2049 else 1024
    tiles = ceil((tokens - 8) / (threads // 32)) * ceil(WIDTHS[tokens] / 512)
    assert job.launches[1].threads == threads
    most = 512 * 256 // threads
    for batch in (1, 8, 32):
        many = merge(tokens, width, batch).launches[1]
        assert min(CHIP, most // 2, batch * tiles) <= many.blocks <= most


@pytest.mark.parametrize("width", [64, 384])
@pytest.mark.parametrize(
    ("gpu", "blocks"),
    [((9.0, 132), 16), ((10.0, 148), 16), ((12.0, 170), 8)],
    ids=["h100", "b200", "rtx-5090"],
)
def test_a_merge_is_one_launch_where_clusters_save_one(
    gpu: tuple[float, int], blocks: int, width: int
) -> None:
    """A cluster an image: tiles of 64 x 64, of which 197 tokens have 4, and 8 survivors a block, of which they have 24 groups."""
    with kernels.gpu(*gpu):
        for batch in (1, gpu[1] // blocks):
            job = merge(197, width, batch)
            if width == 64 or blocks == 16:
                assert kernels_of(job) == ["combine::merge_image"]
                assert (job.launches[0].grid, job.launches[0].cluster) == ((blocks, 1, batch), blocks)
                assert filled(job, 4 * batch)
            else:
                assert len(job.launches) == 2, "wide rows on 8 blocks: a launch saves less than it costs"
        assert len(merge(197, width, gpu[1] // blocks + 1).launches) == 2
        assert len(merge(577, width).launches) == len(merge(4096, width).launches) == 2
    assert len(merge(197, width).launches) == 2


CHOICE: dict[str, Any] = {"protect": [1], "order": 0, "power": 1.0, "mix": 0.0}


def greedy(tokens: int, batch: int = 1, seed: int = 0) -> Job:
    attributes = CHOICE | {"keep": [tokens // 4], "objective": 0, "seed": seed}
    metric = like((batch, tokens, 64), "float16")
    return recorded("TokenGreedySelect", [metric, like((batch, tokens))], attributes)


def cover(tokens: int, batch: int = 1) -> Job:
    metric = like((batch, tokens, 64), "float16")
    return recorded("TokenCoverSelect", [metric, like((batch, tokens))], CHOICE | {"keep": [tokens // 4]})


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_choice_one_by_one_reads_cosines_that_many_blocks_made(tokens: int) -> None:
    """Tiles of 32 x 32 pairs, of 64 x 64 from 1,024 unprotected tokens on."""
    tiles = ceil((tokens - 1) / (32 if tokens < 1025 else 64)) ** 2
    for job in (greedy(tokens), greedy(tokens, seed=2)):
        assert kernels_of(job) == ["gram::cosines", "greedy::choose_by_rows"]
        assert filled(job, tiles)
    job = cover(tokens)
    assert kernels_of(job) == ["gram::cosines", "cover::bounds_by_rows", "cover::choose_by_rows"]
    assert filled(job, tiles)


def test_cosines_of_no_more_than_a_quarter_of_a_gibibyte_are_held_at_once() -> None:
    job = greedy(4097, 8)
    assert kernels_of(job) == ["gram::cosines", "greedy::choose_by_rows"] * 3
    assert [start.grid[2] for start in job.launches[::2]] == [3, 3, 2]
    assert job.workspace == 2**28
    assert kernels_of(greedy(4098, seed=2)) == ["greedy::isolation", "greedy::choose"]
    assert kernels_of(cover(4098)) == ["cover::bounds", "cover::choose"]


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_workspace_is_enough_for_fewer_tokens(batch: int) -> None:
    """An engine asks once, for the most tokens and images of its profile."""
    counts = (17, 64, 1000, 1025, 2000, 3333, 4096, 4097, 6000)
    for job in (greedy, cover, peaks):
        spaces = [job(tokens, batch).workspace for tokens in counts]
        assert spaces == sorted(spaces)
    assert greedy(4096, 3).workspace <= greedy(4096, 40).workspace


def score(tokens: int, heads: int, rows: int, batch: int = 1) -> Job:
    attributes = {"scale": 0.125, "first_row": [0], "end_row": [rows]}
    asked = like((batch, heads, tokens, 64), "float16")
    return recorded("TokenScore", [asked, asked, like((1, 1, 1, 1))], attributes)


HEADS = {197: 6, 577: 16, 729: 16, 4096: 12}
"""Of ViT-S, ViT-L, SigLIP and SAM-B."""


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_score_of_a_row_is_two_launches_over_stretches_of_keys(tokens: int) -> None:
    """Stretches of 64 keys of a head, of 256 from 1,025 tokens on; then 64 tokens a block."""
    job = score(tokens, HEADS[tokens], 1)
    assert kernels_of(job) == ["score::few", "score::few_mean"]
    assert filled(job, HEADS[tokens] * ceil(tokens / (64 if tokens < 1025 else 256)))
    assert job.launches[1].blocks == ceil(tokens / 64)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_score_of_all_rows_starts_a_block_a_tile_until_a_gpu_is_full(tokens: int) -> None:
    """Tiles of 64 x 64 of a head, in both launches."""
    job = score(tokens, HEADS[tokens], tokens)
    assert kernels_of(job) == ["score::row_statistics", "score::column_sums"]
    tiles = HEADS[tokens] * ceil(tokens / 64) ** 2
    assert all(start.blocks >= min(CHIP, tiles) for start in job.launches)


@pytest.mark.parametrize("rows", [1, 4, 5, 70, 577])
def test_the_workspace_of_a_score_is_enough_for_fewer_tokens(rows: int) -> None:
    for heads, batch in ((1, 1), (3, 2), (16, 40)):
        counts = sorted({max(rows, n) for n in (64, 65, 577, 600, 1024, 1025, 2000, 4096, 9000)})
        spaces = [score(tokens, heads, rows, batch).workspace for tokens in counts]
        assert spaces == sorted(spaces)


def peaks(tokens: int, batch: int = 1) -> Job:
    return recorded("TokenPeaks", [like((batch, tokens, 384))], {"keep": [tokens // 2], "neighbours": [5]})


@pytest.mark.parametrize("tokens", TOKENS)
def test_peaks_are_found_in_rows_of_distances_that_many_blocks_made(tokens: int) -> None:
    """Tiles of 32 x 32 pairs, of 64 x 64 from 1,024 tokens on; then four rows a block."""
    job = peaks(tokens)
    assert kernels_of(job) == [
        "distances::between", "peaks::density_by_rows", "peaks::gaps_by_rows", "peaks::rate", "select::sorted",
        "peaks::assign_by_rows",
    ]  # fmt: skip
    assert job.launches[0].blocks == ceil(tokens / (32 if tokens < 1024 else 64)) ** 2
    assert {job.launches[place].blocks for place in (1, 2, 5)} == {ceil(tokens / 4)}
    assert len(peaks(4096, 4).launches) == 12
    assert "peaks::density" in kernels_of(peaks(4097))


@pytest.mark.parametrize("tokens", TOKENS)
def test_tokens_join_centres_by_tiles_of_both(tokens: int) -> None:
    """Tiles of 32 x 32, in stretches from 512 blocks an image on."""
    keep = tokens // 2
    tiles = ceil(tokens / 32) * ceil(keep / 32)
    inputs = [like((1, tokens, 384)), like((1, tokens)), like((1, keep), np.int64)]
    job = recorded("TokenMeans", inputs, {"rounds": 2})
    assert kernels_of(job) == ["means::begin", *["means::join", "rounds::arrange", "means::move"] * 2]
    assert job.launches[1].blocks >= min(CHIP, tiles)
    job = recorded("TokenMedoids", inputs, {"rounds": 1, "power": 2})
    assert kernels_of(job) == [
        "medoids::begin", "nearest::center", "rounds::arrange", "medoids::costs", "medoids::move", "nearest::center",
        "nearest::settle",
    ]  # fmt: skip
    assert job.launches[1].blocks >= min(CHIP, tiles)
    assert job.launches[3].blocks >= min(CHIP, ceil(tokens / 32) ** 2)


@pytest.mark.parametrize("name", ["TokenMeans", "TokenMedoids"])
def test_parts_of_stretches_fit_into_the_workspace(name: str) -> None:
    """Whatever K is, and for fewer tokens and images than an engine was asked for."""
    attributes = {"rounds": 1} if name == "TokenMeans" else {"rounds": 1, "power": 2}
    spaces = []
    for tokens in (1, 31, 32, 33, 129, 577, 1500, 2000, 4096, 16384):
        for keep in {1, (tokens + 1) // 2, tokens}:
            inputs = [like((3, tokens, 8)), like((3, tokens)), like((3, keep), np.int64)]
            job = recorded(name, inputs, attributes)
            stretches = job.launches[1].grid[1]
            assert job.workspace >= 3 * tokens * (8 * stretches + 8)
        spaces.append(job.workspace)
    assert spaces == sorted(spaces)


@pytest.mark.parametrize("channels", [384, 1024])
@pytest.mark.parametrize("tokens", TOKENS)
def test_combining_and_restoring_are_a_launch_of_a_warp_a_row(tokens: int, channels: int) -> None:
    """A block of TokenCombine takes 8 survivors and 512 channels of fp16; one of TokenRestore, and of gathering, 8 rows."""
    rows, kept = like((1, tokens, channels), "float16"), tokens - 8
    lists = [like((1, count), np.int64) for count in (kept, 8, 8)]
    job = recorded("TokenCombine", [rows, like((1, tokens, 1)), *lists], {"type": 10})
    assert kernels_of(job) == ["combine::merge"]
    assert filled(job, ceil(kept / 8) * ceil(channels / 512))
    job = recorded("TokenRestore", [like((1, kept, channels), "float16"), like((1, tokens), np.int64)], {})
    assert kernels_of(job) == ["gather::copy_rows"]
    assert filled(job, ceil(tokens / 8))


def test_a_chip_that_one_block_an_image_would_leave_idle_is_noticed() -> None:
    """The measure itself: a selection alone fills nothing, whatever its tiles."""
    assert not filled(select(4096, 0), 64)
