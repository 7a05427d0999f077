"""Methods of vision-language models where they are meant to sit: at the output of a small tower with its projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.helpers.projectors import WIDTH, pictures, tower
from tests.passes.helpers.running import session
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

WORDS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "attncolsum": {},
    "catp": {},
    "cdpruner": {},
    "cosine": {},
    "dart": {},
    "fastervlm": {},
    "fopru": {"form": "row"},
    "geoprune": {},
    "globalcom2": {},
    "hiprune": {"middle": 0, "anchors": 1},
    "hired": {},
    "holov": {},
    "idpruner": {},
    "prumerge": {},
    "rate": {},
    "recoverable_compression": {},
    "scope": {},
    "todre": {},
    "visionzip": {},
    "vispruner": {},
    "zoo_prune": {"directions": 2},
}
"""Those of pictures that need no weights."""


WHOLE_PICTURES = ("fopru", "globalcom2", "hiprune", "zoo_prune")
"""Not of several crops put together: they read the grid, or carry tokens through a projector that lies before that."""

CASES = [("mlp", name, 12) for name in OPTIONS] + [
    ("stitched", name, 70) for name in OPTIONS if name not in WHOLE_PICTURES
]


def found(kind: str, name: str, keep: int) -> tuple[dict[str, Any], Any]:
    """Outputs by name of the reduced tower, and what it was given."""
    given = dict(pictures(kind))
    stitched = kind == "stitched"
    texts = {"text"} & {entry.removesuffix("?") for entry in methods.get(name).takes}
    made = reduce(
        tower(kind),
        method=name,
        budget=Budget.tokens([keep]),
        site="output",
        options=OPTIONS[name],
        shape=[f"{text}={1 if stitched else 'B'}x{WORDS}x40" for text in texts],
    )
    ready, rng = session(made.model), np.random.default_rng(0)
    rows = 1 if stitched else len(given["pixel_values"])
    for value in ready.get_inputs():
        if value.name not in given:
            shape = [rows if not isinstance(size, int) else size for size in value.shape]
            given[value.name] = rng.standard_normal(shape).astype(np.float32)
    names = [value.name for value in ready.get_outputs()]
    return dict(zip(names, ready.run(names, given), strict=True)), given


@pytest.mark.parametrize(("kind", "name", "keep"), CASES)
def test_it_reduces_an_output(kind: str, name: str, keep: int) -> None:
    outputs, _ = found(kind, name, keep)
    assert outputs["image_features"].shape[1:] == (keep, 40)
    assert np.isfinite(outputs["image_features"]).all()
    if methods.get(name).ascending:
        assert (np.diff(outputs["kept_index"]) > 0).all()


def test_the_choice_is_that_of_the_method_on_the_rows() -> None:
    whole = session(tower("mlp")).run(None, pictures("mlp"))[0]
    for name in ("cosine", "dart", "cdpruner", "catp", "idpruner"):
        outputs, given = found("mlp", name, 12)
        tensors = {"x": whole} | {key: given[key] for key in ("text", "importance") if key in given}
        wanted = apply_method(name, tensors, keep=12, protect=0, backend="onnxruntime")["index"]
        np.testing.assert_array_equal(outputs["kept_index"], wanted)


def test_geoprune_reads_what_enters_the_tap_block() -> None:
    first, last = (
        reduce(tower("mlp"), method="geoprune", budget=Budget.tokens([12]), site="output", tap_layer=layer)
        for layer in (0, 2)
    )
    one, other = (session(made.model).run(["kept_index"], pictures("mlp"))[0] for made in (first, last))
    assert (one != other).any()


def test_cdpruner_of_its_authors_compares_another_block_with_words_of_its_own_space(tmp_path: Path) -> None:
    projection = {
        "post_layernorm.weight": np.ones(WIDTH, np.float32),
        "post_layernorm.bias": np.zeros(WIDTH, np.float32),
        "visual_projection.weight": np.eye(7, WIDTH, dtype=np.float32),
    }
    np.savez(tmp_path / "clip.npz", **projection)
    made = reduce(
        tower("mlp"),
        method="cdpruner",
        budget=Budget.tokens([12]),
        site="output",
        options={"form": "authors", "weights": str(tmp_path / "clip.npz")},
        shape=[f"text=Bx{WORDS}x7"],
    )
    text = np.random.default_rng(1).standard_normal((2, WORDS, 7)).astype(np.float32)
    kept = [
        session(made.model).run(["kept_index"], pictures("mlp") | {"text": sign * text})[0]
        for sign in (1, -1)
    ]
    assert kept[0].shape == (2, 12)
    assert (kept[0] != kept[1]).any()


def test_an_input_that_options_ask_for_is_named() -> None:
    with pytest.raises(MethodError, match=r"reads the input 'text' with these options.*--shape text="):
        reduce(tower("mlp"), method="dart", budget=Budget.tokens([12]), site="output")
    made = reduce(
        tower("mlp"), method="dart", budget=Budget.tokens([12]), site="output", options={"text_pivots": 0}
    )
    assert [value.name for value in session(made.model).get_inputs()] == ["pixel_values"]
