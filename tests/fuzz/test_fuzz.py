"""Graphs that compute what they computed before, written another way: `reduce` gives them the same outputs, or refuses by name.

What fails is shrunk to few changes and written to `regressions/`, where every file is tried again by each run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.helpers import seeds
from tests.fuzz.helpers.changes import CHANGES
from tests.fuzz.helpers.trial import (
    BUDGETS,
    CLOSE,
    FAULTS,
    Outcome,
    Trial,
    apart,
    change,
    check_changes,
    judge,
    offered,
    run,
    seed_reduced,
)

FOLDER = Path(__file__).parent / "regressions"

QUICK = settings(
    max_examples=36,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
)
MANY = settings(QUICK, max_examples=400)

FAST = [name for name, seed in seeds.SEEDS.items() if not seed.dynamo]
"""Seeds that are exported within a second."""

PLACED = {
    "lifted_constants": ("constant_nodes", 0),
    "norm_from_primitives": ("norm_as_primitives", 1),
    "joined_transposes": ("turned_keys", 0),
}
"""What makes a place for a change that undoes another."""


@st.composite
def trials(draw: st.DrawFn, names: tuple[str, ...]) -> Trial:
    name = draw(st.sampled_from(names))
    steps = draw(
        st.lists(st.tuples(st.sampled_from([*CHANGES]), st.integers(0, 999)), min_size=1, max_size=6)
    )
    method = draw(st.sampled_from(seeds.of(name).methods))
    return Trial(name, tuple(steps), method, draw(st.sampled_from([*BUDGETS])))


def faults(trial: Trial, only: int | None = None, sites: bool = True) -> list[Outcome]:
    """What is wrong with a trial, and with its sites, offered or not: all, or one of them."""
    return [each for each in (judge(trial), *(offered(trial, only) if sites else ())) if not each.good]


def tried(trial: Trial, only: int | None = None, sites: bool = True) -> None:
    """Write down what is wrong with a trial.

    Each kind of fault is an error of its own, so that hypothesis shrinks each by itself, and has one file: the last
    written, the smallest, stays.
    """
    found = faults(trial, only, sites)
    if found:
        kept = Trial(trial.model, trial.changed.steps, trial.method, trial.budget).text()
        (FOLDER / f"new-{found[0].kind.replace(' ', '-')}.json").write_text(kept)
        raise FAULTS[found[0].kind](kept + "\n".join(f"{fault.kind}: {fault.told}" for fault in found))


def test_what_failed_once() -> None:
    again = {path.name: faults(Trial.read(path.read_text())) for path in sorted(FOLDER.glob("*.json"))}
    assert not {name: found for name, found in again.items() if found}


@QUICK
@given(trial=trials((*FAST,)), only=st.integers(0, 3), sites=st.booleans())
def test_changed_graphs(trial: Trial, only: int, sites: bool) -> None:
    tried(trial, only, sites)


@pytest.mark.slow
@MANY
@given(trial=trials((*seeds.SEEDS, *(name + seeds.EXPORTED for name in seeds.SEEDS))))
def test_many_changed_graphs(trial: Trial) -> None:
    tried(trial)


@pytest.mark.slow
@pytest.mark.parametrize("name", seeds.SEEDS)
@pytest.mark.parametrize("step", CHANGES)
def test_each_change_alone(step: str, name: str) -> None:
    for method in seeds.of(name).methods:
        tried(Trial(name, ((step, 0),), method))


@pytest.mark.parametrize("step", CHANGES)
def test_a_change_changes_nothing(step: str) -> None:
    """Every change has a place in some seed, and leaves there what is computed."""
    before = [PLACED[step]] if step in PLACED else []
    made = ((name, change(name, (*before, (step, 0)))) for name in FAST)
    name, changed = next((name, changed) for name, changed in made if (step, 0) in changed.steps)
    check_changes(name, changed)


@pytest.mark.parametrize("name", FAST)
def test_choices_of_the_seeds_are_well_apart(name: str) -> None:
    """Noise far above rounding moves no choice, so that outputs of equal graphs can be compared."""
    given, drawn = seeds.feeds(name), np.random.default_rng(0)
    noise = {
        key: np.float32(2e-6) * drawn.standard_normal(value.shape, np.float32) for key, value in given.items()
    }
    noisy = {
        key: value * (1 + noise[key]) if value.dtype == np.float32 else value for key, value in given.items()
    }
    for method in seeds.of(name).methods:
        made = seed_reduced(name, method, "remove 3")
        if made is not None:
            assert apart(run(made.model, noisy), run(made.model, given)) <= CLOSE


def test_a_trial_is_read_as_it_was_written() -> None:
    trial = Trial("class", (("identity", 3), ("opset", 1)), "tome", "remove 6 at 0")
    assert Trial.read(trial.text()) == trial
