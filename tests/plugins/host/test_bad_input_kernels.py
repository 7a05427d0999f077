"""What no launcher takes: each gives an error for it, and touches none of its memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import cases
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import needs_compiler, random, run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import KERNELS

pytestmark = needs_compiler

INVALID, MISALIGNED, UNSUPPORTED = 1, 716, 801
BEYOND = (-1, 2 * 16384 + 1, 2**31 - 1)
"""Numbers outside every limit; the largest, of TokenRestore's tokens, is twice 16384."""
UNLIMITED = dict.fromkeys(
    ("TokenMatch", "TokenCluster", "TokenPeaks", "TokenMeans", "TokenMedoids", "TokenCombine"), (2,)
) | {"TokenRestore": (3,), "TokenMerge": (2, 8)}
"""Which of the numbers are widths that only 31 bits limit."""
TYPE = {"TokenMerge": 9}
"""Which of them is a type."""
ASKEW = 1
"""Bytes off: too few for any element. What begins on an element is taken: see test_memory_kernels.py."""


class Launch:
    """A call of an operator's launcher as plugins/kernels.py makes it, with every argument within reach."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = name
        calls: list[tuple[Any, ...]] = []
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "call", lambda *given: calls.append(given))
            inputs, attributes = cases()[name]
            kernels.run(name, inputs, OPERATORS[name].settle(attributes))
        ((launcher, *arguments),) = calls
        self._launcher = getattr(kernels.library(), f"host_{launcher}")
        self._own = arguments
        self.given = [kernels._passed(item) for item in arguments]
        pointers = next(i for i, item in enumerate(arguments[1:], 1) if not isinstance(item, np.ndarray))
        self.tensors = [i for i in range(1, pointers) if arguments[i].size]
        self.numbers = [
            i for i in range(pointers, len(arguments)) if isinstance(arguments[i], (int, np.integer))
        ]
        for i in self.tensors:
            if (
                arguments[i].reshape(-1).view(np.uint8) == 0xFF
            ).all():  # an output or workspace, unwritten so far
                arguments[i].reshape(-1).view(np.uint8)[...] = 0xA5

    def refused(self, place: int, value: Any) -> int:
        """The error for another argument in one place; all memory must be as it was."""
        before = [self._own[i].tobytes() for i in self.tensors]
        changed = [*self.given]
        changed[place] = value
        status = int(self._launcher(*changed))
        assert [self._own[i].tobytes() for i in self.tensors] == before
        return status


@pytest.fixture(params=sorted(KERNELS))
def launch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Launch:
    return Launch(request.param, monkeypatch)


def test_a_launch_that_is_well_formed_is_taken(launch: Launch) -> None:
    assert launch._launcher(*launch.given) == 0


def test_a_missing_tensor_is_refused(launch: Launch) -> None:
    for place in launch.tensors:
        assert launch.refused(place, None) == INVALID, place


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_misaligned_tensor_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(name, monkeypatch)
    for place in launch.tensors:
        start = launch.given[place].value
        assert launch.refused(place, ctypes.c_void_p(start + ASKEW)) == MISALIGNED, place


def test_a_number_out_of_range_is_refused(launch: Launch) -> None:
    for place in launch.numbers:
        number = launch.numbers.index(place)
        free = number in UNLIMITED.get(launch.name, ())
        wanted = UNSUPPORTED if number == TYPE.get(launch.name) else INVALID
        for value in BEYOND:
            if free and value == BEYOND[1]:
                continue
            assert launch.refused(place, ctypes.c_int(value)) == wanted, (place, value)


def test_another_type_is_refused(launch: Launch) -> None:
    for number in (0, 2, 7, 11, 99):
        assert launch.refused(0, ctypes.c_int(number)) == UNSUPPORTED, number


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(KERNELS)
        if "keep" in {*OPERATORS[name].attributes} - {*OPERATORS[name].outputs}
    ],
)
def test_more_than_all_tokens_are_refused(name: str) -> None:
    inputs, attributes = cases()[name]
    settled = OPERATORS[name].settle(attributes)
    with pytest.raises(UnsupportedError):
        kernels.run(name, inputs, {**settled, "keep": [inputs[0].shape[1] + 1]})


@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**40)])
def test_merging_by_an_index_out_of_range_reads_nothing_beside_a_tensor(bad: int) -> None:
    """A survivor that does not exist is a row of zeros of size 0, a source or a destination that does not counts for nothing."""
    tokens, size = random((1, 9, 8)), np.ones((1, 9, 1), np.float32)
    keep, source, destination = (
        np.array([listed]) for listed in ([0, 2, 4, 6, 8], [1, 3, 5, 7], [0, 1, 2, 3])
    )
    for lists, less in (
        ((keep, np.where(source == 5, bad, source), destination), 2),
        ((keep, source, np.where(destination == 2, bad, destination)), 2),
    ):
        merged, total = run("TokenCombine", [tokens, size, *lists], {"type": 1})
        rest = [listed[:, np.arange(4) != less] for listed in (source, destination)]
        wanted = expect("TokenCombine", [tokens, size, keep, *rest], {"type": 1})
        np.testing.assert_allclose(merged, wanted[0], rtol=1e-6)
        np.testing.assert_array_equal(total, wanted[1])
    merged, total = run(
        "TokenCombine", [tokens, size, np.where(keep == 4, bad, keep), source, destination], {"type": 1}
    )
    assert np.isfinite(merged).all()
    assert total[0, 2] == 1  # what comes to it, alone
