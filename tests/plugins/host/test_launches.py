"""How the kernels fill a GPU: launches of an operator, and blocks, at batch 1 for the sizes of usual models.

A GPU has up to 132 multiprocessors; a launch that has as many tiles of work starts at least as many blocks.
"""

from __future__ import annotations

import pytest

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
