"""ToFu: pruning and norm-keeping averages of ToMe's pairs, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def fused(x: Any, groups: loops.Groups, variant: str) -> Any:
    rows = []
    for position in groups.order:
        members = groups.members[position]
        mean = sum(x[token] for token in members) / len(members)
        largest = max(np.linalg.norm(x[token]) for token in members)
        divisor = np.linalg.norm(mean if variant == "paper" else x[position])
        rows.append(mean * largest / divisor if len(members) > 1 else x[position])
    return np.array(rows)


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("tofu")])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_late_blocks_keep_the_largest_norm(
    tokens: int, removed: int, protect: int, batch: int, variant: str
) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        groups = loops.tome(given["keys"][image].mean(0), removed, protect)
        size = groups.total(given["size"][image, :, 0])
        return fused(given["x"][image], groups, variant), size, groups.goes(tokens), groups.order

    loops.check(
        "tofu", given, wanted, keep=tokens - removed, protect=protect, block=7, blocks=12, variant=variant
    )


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("tofu")])
def test_early_blocks_drop_the_sources(tokens: int, removed: int, protect: int, batch: int) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        order = loops.tome(given["keys"][image].mean(0), removed, protect).order
        stays = loops.Groups(order)
        return given["x"][image, order], given["size"][image, order, 0], stays.goes(tokens), order

    loops.check("tofu", given, wanted, keep=tokens - removed, protect=protect, block=6, blocks=12)


def test_the_strategy_can_be_fixed() -> None:
    given = loops.arrays(21, 1)
    dropped = [
        (apply_method("tofu", given, keep=15, block=block, strategy=strategy)["assign"] < 0).sum()
        for strategy, block in (("prune", 11), ("merge", 0), ("auto", 0), ("auto", 11))
    ]
    assert dropped == [6, 0, 6, 0]


def test_a_fused_token_has_the_largest_norm_and_opposite_tokens_none() -> None:
    given = loops.arrays(12, 1)
    given["x"][0, 3] = -given["x"][0, 4]
    given["keys"][:, :, 3] = given["keys"][:, :, 4]
    for backend in loops.BACKENDS:
        found = apply_method("tofu", given, keep=11, backend=backend, strategy="merge")
        slot = found["assign"][0, 4]
        assert slot == found["assign"][0, 3]
        assert np.linalg.norm(found["tokens"][0, slot]) < 1e-6


def test_padding_joins_without_a_trace() -> None:
    given = loops.arrays(12, 1)
    given["size"][:, 6:] = 0
    given["keys"][:, :, 6:] = given["keys"][:, :, 2:3]
    for backend in loops.BACKENDS:
        found = apply_method("tofu", given, keep=9, protect=0, backend=backend, strategy="merge")
        real = [found["assign"][0, position] for position in range(6)]
        np.testing.assert_allclose(found["tokens"][:, real], given["x"][:, :6], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["prune", "merge"])
def test_odd_numbers_and_equal_tokens(strategy: str) -> None:
    loops.survives_odd_numbers("tofu", 25, strategy=strategy)
    loops.loses_nothing("tofu", 25, strategy=strategy)


def test_wrong_options_are_refused() -> None:
    for option in ("strategy", "variant"):
        with pytest.raises(MethodError, match=f"option {option}=x of method 'tofu'"):
            apply_method("tofu", loops.arrays(9, 1), keep=8, **{option: "x"})
