"""Methods of videos and projectors at an output: what comes out is what they make of the full output's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.helpers.projectors import pictures, tower
from tests.passes.helpers.running import session
from tokenrt import apply_method
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench.method_models import length

CLIP, PICTURE = ("resized", (4, 4, 4)), ("mlp", (6, 6))


def run(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    made = session(model)
    names = [value.name for value in made.get_outputs()]
    return dict(zip(names, made.run(names, inputs), strict=True))


def rows(form: str, grid: tuple[int, ...]) -> Any:
    """The full output [B,N,C], the frames of a clip as one sequence."""
    full = run(tower(form), pictures(form))["image_features"]
    return full.reshape(-1, int(np.prod(grid)), full.shape[-1])


@pytest.mark.parametrize(
    ("name", "keep", "where", "options"),
    [
        ("evs", 30, CLIP, {}),
        ("vidcom2", 30, CLIP, {"retention": 0.4}),
        ("dycoke", 54, CLIP, {}),
        ("quota", 20, CLIP, {}),
        ("aim", 20, CLIP, {}),
        ("prunevid", 40, CLIP, {}),
        ("m3", 16, CLIP, {}),
        ("m3", 9, PICTURE, {}),
    ],
)
def test_it_reduces_the_rows(
    name: str, keep: int, where: tuple[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    form, grid = where
    budget = Budget.tokens([keep])
    made = reduce(tower(form), method=name, budget=budget, site="output", grid=grid, options=options)
    asked = {"quotas": np.array([[8, 2, 4, 6]])} if name == "quota" else {}
    found = run(made.model, pictures(form) | asked)
    given = {"x": rows(form, grid), "grid": grid, **asked}
    wanted = apply_method(name, given, keep=keep, protect=0, **options)
    shape = found["image_features"].shape
    np.testing.assert_allclose(wanted["tokens"].reshape(shape), found["image_features"], atol=1e-5)
    if methods.get(name).merges:
        np.testing.assert_array_equal(found["token_source_map"], wanted["assign"])
    else:
        np.testing.assert_array_equal(found["kept_index"], wanted["index"])


@pytest.mark.parametrize(
    ("name", "keep", "where", "options"),
    [
        ("holitom", 30, CLIP, {"score": "received"}),
        ("fastvid", 32, CLIP, {"score": "received"}),
        ("vflowopt", 20, PICTURE, {"side": 3.0}),
        ("tokenflex", 16, PICTURE, {}),
    ],
)
def test_it_reads_the_tower(
    name: str, keep: int, where: tuple[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    form, grid = where
    budget = Budget.tokens([keep])
    made = reduce(tower(form), method=name, budget=budget, site="output", grid=grid, options=options)
    found = run(made.model, pictures(form))
    assert found["image_features"].shape[-2] == keep
    assert np.isfinite(found["image_features"]).all()
    assert found["token_source_map"].max() == keep - 1


@pytest.mark.parametrize(
    ("name", "keep", "width"),
    [("focusllava", 27, 40), ("serum", 20, 32), ("when_less_is_enough", 20, 32), ("ager", 20, 32)],
)
def test_trained_ones_take_their_weights_from_a_file(
    name: str, keep: int, width: int, tmp_path: Path
) -> None:
    """Width is that of the output, or of the features in front of the projector, where the method is at home."""
    random = np.random.default_rng(0)
    letters = {"C": width, "K": keep, "M": 4, "Q": 3}
    weights = {
        tensor: 0.3 * random.standard_normal([length(part, letters) for part in shape.split(",")])
        for tensor, shape in methods.get(name).needs.items()
    }
    np.savez(tmp_path / "weights.npz", **weights)  # type: ignore[arg-type]
    options = {"weights": str(tmp_path / "weights.npz")}
    budget = Budget.tokens([keep])
    made = reduce(tower("mlp"), method=name, budget=budget, site="output", grid=(6, 6), options=options)
    found = run(made.model, pictures("mlp"))
    assert found["image_features"].shape == (2, keep, 40)
    assert np.isfinite(found["image_features"]).all()
