"""The page of published systems: every one has its line, and its state follows from what the methods say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenrt.passes import methods
from tokenrt.passes.methods import systems

PAGE = Path(__file__).parents[3] / "docs" / "systems.md"
EVERY = {system.name: system for section in systems.systems().values() for system in section}


def test_the_page_is_that_of_the_methods() -> None:
    assert systems.page() == PAGE.read_text(encoding="utf-8"), "run make docs"


def test_every_system_has_one_line() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(systems.PUBLISHED.strip().splitlines()) == 74
    for name in EVERY:
        assert sum(line.startswith(f"| {name} | ") for line in lines) == 1


@pytest.mark.parametrize("name", methods.names())
def test_what_a_method_covers_is_on_the_page(name: str) -> None:
    for claim in methods.get(name).systems:
        system, _, step = claim.partition(": ")
        assert EVERY[system].covered[name] == step


@pytest.mark.parametrize(
    ("system", "state"),
    [
        ("ToMe", "works"),
        ("Which Tokens to Use (10 methods)", "works"),
        ("TORE", "works with weights"),
        ("DivPrune", "works"),
        ("MrT5", "works with weights"),
        ("AIM", "works: merging before the language model, pruning inside the language model"),
        ("MustDrop", "works: merging inside the tower, dropping inside the language model"),
        ("CATP", "part: the first stage, the second stage"),
        ("CAS-ViT", "recognised"),
        ("H2O", "works"),
    ],
)
def test_states(system: str, state: str) -> None:
    assert EVERY[system].state == state


def test_what_is_no_rewrite_is_claimed_by_no_method_and_says_why() -> None:
    for name, reason in systems.NO_REWRITE.items():
        assert EVERY[name].covered == {}
        assert reason in EVERY[name].row()
