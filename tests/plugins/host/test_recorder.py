"""The record of launches: what an operator starts, in order, without running it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plugins.helpers.running import needs_compiler, random
from tokenrt.errors import UnsupportedError
from tokenrt.plugins.host import kernels, symbols
from tokenrt.plugins.host.recorder import like, recorded

pytestmark = needs_compiler


def match(tokens: int, remove: int) -> dict[str, Any]:
    half = tokens // 2
    return {
        "sources": list(range(half)),
        "destinations": list(range(half, tokens)),
        "others": [],
        "keep": [tokens - remove],
        "remove": [remove],
        "order": 0,
    }


def test_a_restore_starts_a_warp_a_row() -> None:
    """Eight rows a block: 3 images of 100 places are 300 rows, 38 blocks."""
    job = recorded("TokenRestore", [like((3, 50, 64), "float16"), like((3, 100), np.int64)], {})
    (start,) = job.launches
    assert start.kernel.startswith("gather") or "copy_rows" in start.kernel
    assert (start.blocks, start.threads, start.shared, job.workspace) == (38, 256, 0, 0)


def test_a_match_starts_its_kernels_in_order_and_says_its_workspace() -> None:
    job = recorded("TokenMatch", [like((2, 196, 64))], match(196, 8))
    assert len(job.launches) == len({start.kernel for start in job.launches})
    assert job.most_blocks >= 2 * 4
    assert job.workspace > 0


def test_nothing_is_run_and_the_next_call_runs() -> None:
    tokens, places = random((1, 4, 8)), np.array([[3, 0]])
    recorded("TokenRestore", [tokens, places], {})
    (found,) = kernels.run("TokenRestore", [tokens, places], {})
    np.testing.assert_array_equal(found, tokens[:, [3, 0]])


def test_sizes_beyond_any_memory_are_recorded() -> None:
    """256 GiB of tokens: nothing may be allocated."""
    job = recorded("TokenRestore", [like((1024, 16384, 4096)), like((1024, 16384), np.int64)], {})
    assert job.launches[0].grid[0] <= 0x7FFFFFFF


def test_what_a_kernel_refuses_is_refused_and_leaves_nothing_recorded() -> None:
    with pytest.raises(UnsupportedError, match="error 801"):
        recorded("TokenRestore", [like((1, 4, 8), np.float64), like((1, 2), np.int64)], {})
    assert len(recorded("TokenRestore", [like((1, 4, 8)), like((1, 2), np.int64)], {}).launches) == 1


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        ("void tokenrt::f<float, 3>(int const*)", "f<float, 3>"),
        ("(anonymous namespace)::g(int)", "(anonymous namespace)::g"),
        ("tokenrt::a::b", "a::b"),
    ],
)
def test_names_lose_their_parameters(given: str, bare: str) -> None:
    assert symbols.bare(given) == bare
