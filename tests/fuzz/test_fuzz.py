"""Graphs that compute what they computed before, written another way: `reduce` gives them the same outputs, or refuses by name.

What fails is shrunk to few changes and written to `regressions/`, where every file is tried again by each run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.helpers import seeds
from tests.fuzz.helpers.changes import CHANGES
from tests.fuzz.helpers.trial import BUDGETS, CLOSE, Trial, apart, change, check_changes, judge, offered, run
from tokenrt.passes.reduce import reduce

FOLDER = Path(__file__).parent / "regressions"

QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.shrink],
)
MANY = settings(QUICK, max_examples=400)


@st.composite
def trials(draw: st.DrawFn, exported: bool = True) -> Trial:
    name = draw(st.sampled_from([*seeds.SEEDS]))
    name += draw(st.sampled_from(["", seeds.EXPORTED])) if exported else ""
    steps = draw(
        st.lists(st.tuples(st.sampled_from([*CHANGES]), st.integers(0, 999)), min_size=1, max_size=6)
    )
    method = draw(st.sampled_from(seeds.of(name).methods))
    return Trial(name, tuple(steps), method, draw(st.sampled_from([*BUDGETS])))


def tried(trial: Trial, only: int | None = None) -> None:
    """Judge a trial and every site it is offered, or one. What fails is written down; of what shrinks, the last stays."""
    outcomes = [judge(trial), *offered(trial, only)]
    faults = [f"{outcome.kind}: {outcome.told}" for outcome in outcomes if not outcome.good]
    if faults:
        kept = Trial(trial.model, trial.changed.steps, trial.method, trial.budget).text()
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"new-{hashlib.sha256(kept.encode()).hexdigest()[:8]}.json").write_text(kept)
        pytest.fail(f"{kept.strip()}\n" + "\n".join(faults))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_failed_once(path: Path) -> None:
    tried(Trial.read(path.read_text()))


@QUICK
@given(trial=trials(exported=False), only=st.integers(0, 5))
def test_changed_graphs(trial: Trial, only: int) -> None:
    tried(trial, only)


@pytest.mark.slow
@MANY
@given(trial=trials())
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
    """On every seed that has a place for it, and on one at least."""
    before = SETTING_UP.get(step, ())
    made = {name: change(name, (*before, (step, 0))) for name in FAST}
    for name, changed in made.items():
        check_changes(name, changed)
    assert any((step, 0) in changed.steps for changed in made.values())


FAST = ("class", "mean", "rotary")
SETTING_UP = {
    "lifted_constants": (("constant_nodes", 0),),
    "norm_from_primitives": (("norm_as_primitives", 1),),
    "joined_transposes": (("turned_keys", 0),),
}
"""What makes a place for a change that undoes another."""


@pytest.mark.parametrize("name", [name for name in seeds.SEEDS if name not in ("dynamo",)])
def test_choices_of_the_seeds_are_well_apart(name: str) -> None:
    """Noise far above rounding moves no choice, so that outputs of equal graphs can be compared."""
    given, drawn = seeds.feeds(name), np.random.default_rng(0)
    noisy = {
        key: value * (1 + np.float32(2e-6) * drawn.standard_normal(value.shape, np.float32))
        if value.dtype == np.float32
        else value
        for key, value in given.items()
    }
    for method in seeds.of(name).methods:
        made = reduce_or_none(name, method)
        if made is not None:
            assert apart(run(made, noisy), run(made, given)) <= CLOSE


def reduce_or_none(name: str, method: str) -> object:
    import onnx_ir as ir

    from tokenrt.errors import TokenrtError

    try:
        return reduce(ir.from_proto(seeds.model(name)), method=method, budget=BUDGETS["remove 3"]).model
    except TokenrtError:
        return None


def test_a_trial_is_read_as_it_was_written() -> None:
    trial = Trial("class", (("identity", 3), ("opset", 1)), "tome", "remove 6 at 0")
    assert Trial.read(trial.text()) == trial
