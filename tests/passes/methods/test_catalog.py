"""The catalogue of methods: the table, the cards, the pages, all from the methods themselves."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.conformance.test_methods import fitting
from tokenrt import apply_method
from tokenrt.passes import methods
from tokenrt.passes.methods import catalog, terms
from tokenrt.passes.methods.tensors import TensorTaps

DOCS = Path(__file__).parents[3] / "docs" / "methods"


def printed(item: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(item)
    return console.export_text()


def test_the_table_names_every_method_and_fits_a_terminal() -> None:
    text = printed(catalog.catalog(), 160)
    assert all(name in text for name in methods.names())
    assert max(map(len, printed(catalog.catalog()).splitlines())) <= 80


def test_engines_that_ship_a_method_are_named_with_their_words() -> None:
    shipped = catalog.catalog().engines()
    assert shipped["vLLM"]["evs"] == "--video-pruning-rate RATE"
    text = printed(catalog.catalog(), 160)
    assert all(engine in text and words in text for engine, own in shipped.items() for words in own.values())
    assert "shipped by" in printed(catalog.info("evs"), 100)


def test_a_card_says_where_a_method_sits_and_what_a_model_gains() -> None:
    text = printed(catalog.info("quota"), 120)
    assert "at an output of the model" in text
    assert "quotas [B,G], importance [B,N] where an option asks" in text
    assert "inputs gained" not in printed(catalog.info("tome"), 120)


def test_it_serialises() -> None:
    listed = json.loads(json.dumps(catalog.catalog().as_dict()))["methods"]
    assert [row["name"] for row in listed] == list(methods.names())
    assert next(row for row in listed if row["name"] == "evit")["options"]["fuse"] is True


@pytest.mark.parametrize("name", methods.names())
def test_a_card_fits_one_screen_and_says_what_is_needed(name: str) -> None:
    info = catalog.info(name)
    text = printed(info, 100)
    assert text.startswith(f"{name}: ")
    assert len(text.splitlines()) <= 50
    assert info.summary
    assert info.paper
    assert info.text
    assert set(info.reads) <= TAPS
    assert ("--set weights=FILE" in text) == bool(info.needs)


TAPS = {
    "tokens", "stream", "normed", "metric", "queries", "keys", "values", "attention", "class_attention", "received_attention",
    "grid", "size", "state", "text", "text_mask", "quotas", "importance", "pixels", "projected", "text_attention",
    "last_attention", "neurons", "text_neurons", "segments", "update", "noise", "temperature", "hidden",
}  # fmt: skip


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("name", methods.of_tokens())
def test_a_matrix_is_computed_when_the_catalogue_says(
    name: str, class_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = set[str]()

    def watched(tap: str, own: Callable[[TensorTaps], Any]) -> Callable[[TensorTaps], Any]:
        def call(taps: TensorTaps) -> Any:
            read.add(tap)
            return own(taps)

        return call

    for tap in ("attention", "received_attention"):
        monkeypatch.setattr(TensorTaps, tap, watched(tap, getattr(TensorTaps, tap)))
    # 36 cells, a grid of 6 x 6, with the class token before them where there is one.
    given = fitting(name, 36 + class_token, 28, int(class_token), 1)
    apply_method(name, backend="numpy", class_token=class_token, **given)
    told = catalog.info(name).matrix
    assert bool(read) == (told == terms.ALWAYS or (told == terms.WITHOUT_CLASS and not class_token))


def test_the_pages_are_those_of_the_methods(tmp_path: Path) -> None:
    catalog.write(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DOCS.iterdir()}, "run make docs"


def test_pages_of_methods_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("old")
    (tmp_path / "note.txt").write_text("kept")
    catalog.write(tmp_path)
    assert not (tmp_path / "gone.md").exists()
    assert (tmp_path / "note.txt").exists()


def test_a_release_that_departs_from_its_paper_has_both_variants() -> None:
    for name in methods.names():
        both = {"paper", "reference"} <= set(re.findall(r"[a-z]+", methods.get(name).deviations))
        assert both == ("variant" in catalog.info(name).options), name
        for variant in ("paper", "reference") if both else ():
            methods.get(name).from_options({"variant": variant})
