"""Every operator at the most that its contract promises, and one beyond: launches are recorded, and nothing is run.

The host layer refuses a launch that a GPU would: more than 65,535 blocks along y or z, 1,024 threads, 48 KiB of dynamic
shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import KINDS, needs_compiler
from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins.contracts import FREE, OWN, contracts
from tokenrt.plugins.host.recorder import Job, like, recorded
from tokenrt.plugins.limits import MOST_ELEMENTS

pytestmark = needs_compiler

MOST = 16384
SELECT = {"keep": [MOST // 2], "protect": [1], "order": 1}
CHOICE = {"keep": [32], "protect": [1], "order": 0, "power": 1.0, "mix": 0.0}
GROUPS = {"keep": [1 + 1023], "protect": [1], "lengths": [1] * 1022 + [MOST - 1023], "quotas": [1] * 1023}
ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {
    "TokenSelect": SELECT,
    "TokenGroupSelect": GROUPS,
    "TokenGreedySelect": {**CHOICE, "objective": 0, "seed": 2},
    "TokenCoverSelect": CHOICE,
    "TokenDeterminantSelect": {"keep": [32], "protect": [1], "order": 0, "mix": 0.0, "epsilon": 0.0},
    "TokenMatch": alternate(MOST, 1, 4096, 0),
    "TokenCluster": {"keep": [MOST // 2], "remove": [MOST // 2], "linkage": 2},
    "TokenPeaks": {"keep": [MOST], "neighbours": [64]},
    "TokenMeans": {"rounds": 100},
    "TokenMedoids": {"rounds": 100, "power": 2},
    "TokenScore": {"scale": 1.0, "first_row": [0], "end_row": [MOST]},
    "TokenCombine": {"type": 1},
    "TokenMerge": {**alternate(MOST, 1, 4096, 0), "type": 1},
    "TokenRestore": {},
}
"""Attributes with which each operator does the most at once."""

COUNTS = {"K": MOST, "R": MOST, "T": MOST, "S": MOST}
"""Letters that an input has and no limit names: as many as there are tokens."""


def shapes(name: str, changed: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Of the inputs, every axis the largest that it may be; the product of choices and widths is bounded, too."""
    limits = contracts()[name].limits
    widest = MOST_ELEMENTS // (limits.axes.get("K", 0) or MOST)
    sizes = {"C": widest, "D": widest, "1": 1, "H": 1} | COUNTS | dict(limits.axes) | dict(changed)
    letters = [tensor.shape for tensor in contracts()[name].inputs]
    return [(1, 1, 1, 1) if axes == "*" else tuple(sizes[letter] for letter in axes) for axes in letters]


def job(name: str, kind: str, changed: Mapping[str, int]) -> Job:
    given = [
        like(shape, kind if tensor.type in (OWN, FREE) else tensor.type)
        for shape, tensor in zip(shapes(name, changed), contracts()[name].inputs, strict=True)
    ]
    return recorded(name, given, ATTRIBUTES[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", contracts())
def test_every_launch_fits_a_gpu_at_the_limits(name: str, kind: str) -> None:
    for changed in ({}, {"B": 1}, {"D": 64, "C": 64}):
        found = job(name, kind, changed)
        assert found.launches
        for start in found.launches:
            assert start.grid[0] < 2**31
            assert max(start.grid[1:]) <= 65535
            assert start.threads <= 1024
            assert start.threads % 32 == 0
        assert contracts()[name].misfit(shapes(name, changed), ATTRIBUTES[name]) == ""


BEYOND = [(name, letter) for name, contract in contracts().items() for letter in contract.limits.axes]


@pytest.mark.parametrize(("name", "letter"), BEYOND)
def test_one_beyond_a_limit_is_refused_by_the_kernel_and_foreseen(name: str, letter: str) -> None:
    changed = {letter: contracts()[name].limits.axes[letter] + 1}
    with pytest.raises(
        UnsupportedError, match=r"error 1: a size is outside|TokenGroupSelect: lengths add up"
    ):
        job(name, "float32", changed)
    reason = contracts()[name].misfit(shapes(name, changed), OPERATORS[name].settle(ATTRIBUTES[name]))
    assert reason.startswith(f"{letter} of its input")


ROWS = [
    name
    for name, contract in contracts().items()
    if "D" not in contract.limits.axes and any(set("CD") & set(tensor.shape) for tensor in contract.inputs)
]


@pytest.mark.parametrize("name", ROWS)
def test_a_width_that_31_bits_cannot_count_is_refused_and_foreseen(name: str) -> None:
    changed = dict.fromkeys("CD", MOST_ELEMENTS // MOST + 1)
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        job(name, "float32", changed)
    assert "elements an image" in contracts()[name].misfit(shapes(name, changed), ATTRIBUTES[name])


def test_the_cases_are_those_of_all_operators() -> None:
    assert set(ATTRIBUTES) == set(contracts())
    assert np.prod(shapes("TokenMatch", {})[0][1:], dtype=np.int64) <= MOST_ELEMENTS
