"""Sums over single places: the path that is solved for is the best of all that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tokenrt.perf.tune.additive import Additive, Step

TOKENS, LEVELS = 12, (3, 6, 9)


def drawn(seed: int) -> Additive:
    random = np.random.default_rng(seed)
    harms = {
        (name, block): [(n, float(v)) for n, v in zip(LEVELS, sorted(random.random(3))[::-1], strict=True)]
        for name in ("a", "b")
        for block in range(3)
    }
    behind = {block: [(n, 1 - (1 - n / TOKENS) * (1 - block / 3)) for n in LEVELS] for block in range(3)}
    return Additive(TOKENS, range(3), harms, behind, {"a": 0.01, "b": 0.05})


def every() -> list[list[Step]]:
    """All paths of counts that do not rise, with every method at every step that is not too large for it."""
    found = []
    for counts in itertools.product((*LEVELS, TOKENS), repeat=3):
        pairs = [*itertools.pairwise((TOKENS, *counts))]
        if any(after > before or after < before / 4 for before, after in pairs):
            continue
        for names in itertools.product(
            *(["a", "b"] if after < before else [None] for before, after in pairs)
        ):
            found.append(
                [Step(b, *pair, name) for b, (pair, name) in enumerate(zip(pairs, names, strict=True))]
            )
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("most", "penalty"), [(0.8, 0.0), (0.5, 0.0), (0.5, 0.3)])
def test_no_path_harms_less_within_the_cost(seed: int, most: float, penalty: float) -> None:
    known = drawn(seed)

    def harm(steps: list[Step]) -> float:
        return sum(known.harm(step) + penalty * (step.method is not None) for step in steps)

    def cost(steps: list[Step]) -> float:
        return 1 + sum(known.cost(step) for step in steps)

    least = min(harm(steps) for steps in every() if cost(steps) <= most)
    found = known.solve(LEVELS, most, penalty)
    assert found is not None
    assert harm(found) == pytest.approx(least, rel=2e-3)
    sites, here, path = {step.block: step for step in found}, TOKENS, list[Step]()
    for block in range(3):
        path.append(sites.get(block, Step(block, here, here, None)))
        here = path[-1].staying
    assert cost(path) <= most + 1e-9


def test_a_cost_that_nothing_reaches_has_no_path() -> None:
    assert drawn(0).solve(LEVELS, 0.05) is None


def test_a_penalty_leaves_fewer_sites() -> None:
    counts = [len(drawn(1).solve(LEVELS, 0.5, penalty) or ()) for penalty in (0.0, 5.0)]
    assert counts[1] == 1 <= counts[0]
