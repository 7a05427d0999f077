"""docs/cli.md is what the command line says of itself today."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from tests.helpers.documents import ROOT
from tokenrt.cli import app, reference

PAGE = ROOT / "docs" / "cli.md"


def test_the_committed_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.page(), "make docs writes it anew"


def test_every_verb_and_every_option_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    root: Any = get_command(app)
    groups = {name: getattr(command, "commands", None) for name, command in root.commands.items()}
    verbs = {name: root.commands[name] for name, inner in groups.items() if inner is None}
    verbs |= {
        f"{name} {verb}": found for name, inner in groups.items() for verb, found in (inner or {}).items()
    }
    for name, command in verbs.items():
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = [word for each in command.params for word in each.opts if word.startswith("--")]
        assert section, name
        assert not [word for word in options if f"{word}" not in section + reference.INTRODUCTION], name


@pytest.mark.parametrize(
    "settings", [{"COLUMNS": "40", "FORCE_COLOR": "1"}, {"NO_COLOR": "1", "TERM": "dumb"}]
)
def test_neither_width_nor_colours_matter(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = reference.page()
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert reference.page() == before
    assert "\x1b" not in before


def test_the_script_writes_the_page(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cli.md"
    monkeypatch.setattr("sys.argv", ["reference", str(path)])
    reference.main()
    assert path.read_text(encoding="utf-8") == reference.page()
