"""How many tokens a method can leave of an output: a ratio goes to the nearest such count, and others are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tests.passes.helpers.projectors import tower
from tokenrt.errors import PlanError, TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.methods.apply import apply_method
from tokenrt.passes.methods.contract import Site
from tokenrt.passes.planning.outputs.site import left
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import reduce

FRAMES, HEIGHT, WIDTH = 4, 4, 6
CHOOSY = {
    "m3": (HEIGHT, WIDTH),
    "tokenflex": (HEIGHT, WIDTH),
    "focusllava": (HEIGHT, WIDTH),
    "dycoke": (FRAMES, HEIGHT, WIDTH),
    "holitom": (FRAMES, HEIGHT, WIDTH),
    "prunevid": (FRAMES, HEIGHT, WIDTH),
    "fastvid": (FRAMES, HEIGHT, WIDTH),
}


@pytest.mark.parametrize("name", CHOOSY)
def test_the_counts_that_are_named_are_those_that_can_be_left(name: str) -> None:
    grid = CHOOSY[name]
    tokens = int(np.prod(grid))
    method: Any = methods.get(name)
    options: dict[str, Any] = {"weights": given.weights(method, tokens, tokens, 0)} if method.needs else {}
    options |= {"score": "importance"} if "score" in method().options() else {}
    site = Site(tokens, 0, 0, 1, 1, grid=grid)
    named = method.from_options(options).laid_out(grid).counts(site)
    assert list(named) == sorted({*named})
    assert named
    assert named[-1] < tokens
    rng = np.random.default_rng(0)
    arrays = {"x": given.arrays(tokens, 1, 0)["x"], "importance": rng.random((1, tokens), np.float32)}
    taken = []
    for keep in range(1, tokens):
        try:
            made = apply_method(name, arrays | {"grid": grid}, keep=keep, protect=0, **options)
        except TokenrtError:
            continue
        assert made["tokens"].shape[1] == keep
        taken.append(keep)
    assert taken == list(named)


@pytest.mark.parametrize(
    ("ratio", "stay", "note"),
    [
        (0.25, 9, ()),
        (0.4, 9, ("--keep 0.4: m3 cannot leave 15 of 36 tokens; 9 is the nearest",)),
        (0.15, 4, ("--keep 0.15: m3 cannot leave 6 of 36 tokens; 4 is the nearest",)),
        (1, 36, ()),
    ],
)
def test_a_ratio_goes_to_the_nearest_count(ratio: float, stay: int, note: tuple[str, ...]) -> None:
    assert left(Budget.keep(ratio), methods.get("m3")(), Site(36, 0, 0, 1, 1, grid=(6, 6))) == (stay, note)


def test_the_plan_tells_of_it_and_an_exact_count_is_refused() -> None:
    made = reduce(tower("mlp"), method="m3", budget=Budget.keep(0.4), site="output")
    assert made.plan.outputs[0].tokens == 9
    assert made.plan.as_dict()["notes"] == ["--keep 0.4: m3 cannot leave 15 of 36 tokens; 9 is the nearest"]
    with pytest.raises(PlanError, match=r"15 of the output's 36 tokens .* with m3, .*: 9 can"):
        reduce(tower("mlp"), method="m3", budget=Budget.tokens([15]), site="output")
    edited = Plan.parse(made.plan.to_toml().replace("\ntokens = 9\n", "\ntokens = 8\n"), "edited")
    with pytest.raises(PlanError, match=r"8 of the output's 36 tokens .*: 4 or 9 can"):
        reduce(tower("mlp"), plan=edited)
