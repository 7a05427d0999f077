"""The page of a comparison: what it holds is what was measured, and where each patch of the photographs went."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tokenrt
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.compare import compare as module
from tokenrt.perf.compare.comparison import Comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, a model reduced from it that says how and one that does not, a plan, and two pictures."""
    pillow = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra report)")
    made = tmp_path_factory.mktemp("page")
    original = PlainViT(width=64, heads=2, blocks=2, patch=16, image=64, classes=10).write(made / "vit.onnx")
    reduced = tokenrt.reduce(original, method="topk", budget=Budget.remove(3), output=made / "told.onnx")
    reduced.plan.save(made / "plan.toml")
    foreign = onnx.load(made / "told.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, made / "foreign.onnx")
    (made / "pictures").mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = random.integers(0, 255, (64, 64, 3), np.uint8)
        pillow.fromarray(pixels).save(made / "pictures" / f"{name}.png")
    return made


def compared(folder: Path, *names: str, data: Path | None) -> tuple[Comparison, dict[str, Any]]:
    page = folder / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "REPEATS", 1)
        found = tokenrt.compare(
            [folder / name for name in names],
            original=folder / "vit.onnx",
            data=data,
            rounds=3,
            threads=1,
            check=False,
            output=page,
        )
    (inside,) = re.findall(
        r'<script type="application/json" id="document">(.*?)</script>', page.read_text("utf-8"), re.DOTALL
    )
    return found, json.loads(inside)


def test_it_holds_the_figures_and_where_every_patch_went(folder: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra report)")
    found, told = compared(folder, "plan.toml", "foreign.onnx", data=folder / "pictures")
    assert found.page == folder / "page.html"
    plan, foreign = told["entries"]
    for row, entry in zip(found.rows, (plan, foreign), strict=True):
        assert entry["name"] == row.name
        assert entry["cost"] == entry["time"]["ratio"] == pytest.approx(row.time.median, rel=1e-5)
        assert entry["harms"] == pytest.approx(row.harm.images, rel=1e-5)
        assert entry["front"] == (not found.beaten_by(row))
    assert (told["model"]["tokens"], told["model"]["protected"], told["model"]["grid"]) == (17, 1, [4, 4])
    assert [step["leaving"] for step in plan["flow"]] == [14, 11]
    assert foreign["flow"] == foreign["views"] == []
    assert [sample["name"] for sample in told["samples"]] == ["a", "b"]
    for view in plan["views"]:
        assert [len(change["cells"]) for change in view] == [3, 3]
        assert all(token == -1 for change in view for token in change["tokens"])
    assert told["missing"] == {"checks": "the models were compared with --no-check"}
    lines = [each["line"] for each in told["commands"]]
    assert any(line.startswith("tokenrt compare ") and "--no-check" in line for line in lines)
    assert any(line.startswith("tokenrt reduce ") for line in lines)


def test_what_cannot_be_shown_says_why(folder: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra report)")
    _, told = compared(folder, "told.onnx", data=None)
    assert told["missing"]["samples"] == "the models were run on seeded noise: give --data"
    _, told = compared(folder, "foreign.onnx", data=None)
    assert told["missing"]["flow"] == "no model says by which plan it was made"


@pytest.mark.parametrize("name", ["page.txt", "none/page.html"])
def test_a_page_that_cannot_be_written_is_told_before_any_work(folder: Path, name: str) -> None:
    with pytest.raises(tokenrt.TokenrtError, match="cannot write"):
        tokenrt.compare([folder / "none.onnx"], original=folder / "vit.onnx", output=folder / name)
