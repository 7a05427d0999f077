"""How the kernels fill a GPU: launches of an operator, and blocks, at batch 1 for the sizes of usual models.

A GPU has up to 132 multiprocessors; a launch that has as many tiles of work starts at least as many blocks.
"""

from __future__ import annotations

from math import ceil

import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import needs_compiler
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
