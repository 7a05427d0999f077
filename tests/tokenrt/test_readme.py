"""What the documents tell a reader to type is understood, and the README's tour runs as written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.helpers.documents import DEVICE, FENCE, HERE, PAGES, README, ROOT, commands
from tests.tokenrt.conftest import Run
from tokenrt.cli import app
from tokenrt.perf.demo import subject

LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")

EVERY = [
    pytest.param(line, id=f"{page.name}: {line}") for page in PAGES for line in commands(page, HERE, DEVICE)
]


@pytest.mark.parametrize("line", EVERY)
def test_documented_command_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "tokenrt":
        root: Any = get_command(app)
        verb, *arguments = words[1:]
        root.commands[verb].make_context(verb, arguments)
    elif words[0] == "make":
        goals = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(goals)


@pytest.mark.slow
def test_the_tour_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        shutil.copy(subject.photograph(name).file, tmp_path / "photos")
    for line in commands(README):
        words = shlex.split(line)
        if words[0] == "tokenrt":
            done = run(*words[1:])
            assert done.exit_code == 0, f"{line}\n{done.stderr}"
    made = {path.name for path in tmp_path.iterdir()}
    assert {"deit.onnx", "plan.toml", "reduced.onnx", "plain.onnx", "run", "report.html"} <= made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    local = [target for target, _ in LINK.findall(page.read_text()) if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_every_verb_is_documented() -> None:
    text = README.read_text()
    root: Any = get_command(app)
    assert not [verb for verb in root.commands if f"`{verb}`" not in text]


def test_the_example_target_of_the_guide_is_a_profile() -> None:
    from tokenrt.targets.profiles.profile import FACTS, read

    blocks = FENCE.findall((ROOT / "CONTRIBUTING.md").read_text())
    (text,) = (body for language, body in blocks if language == "toml")
    profile = read(ROOT / "targets" / "profiles" / "rtx-sm89.toml")
    for line in ("name", "summary", "builder"):
        assert f'{line} = "{getattr(profile, line)}"' in text
    assert set(re.findall(r"^\[facts\.(\w+)\]", text, re.MULTILINE)) <= set(FACTS)
