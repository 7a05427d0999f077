"""Pictures of what stayed: written for each photograph, dark where patches left, of one colour where they were joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.passes.helpers.projectors import SIDE, tower
from tokenrt.cli import app
from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.pictures.draw import drawn, labels
from tokenrt.perf.pictures.write import write


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(96, 96), (120, 60)]):
        noise = np.random.default_rng(number).integers(90, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"photo{number}.png")
    return folder


def cells(path: Path) -> list[np.ndarray]:
    """The patches of a drawn picture, without the outlines at their edges."""
    image = np.asarray(Image.open(path)).astype(float)
    parts = [np.array_split(row, SIDE, axis=1) for row in np.array_split(image, SIDE, axis=0)]
    return [cell[4:-4, 4:-4] for row in parts for cell in row]


@pytest.mark.parametrize("where", ["output", "after-block"])
def test_patches_that_left_are_dark(photos: Path, tmp_path: Path, where: str) -> None:
    budget = Budget.tokens([9]) if where == "output" else Budget.tokens([10], [1])
    made = reduce(tower("mlp"), method="topk", budget=budget, site=where)
    told = write(tower("mlp"), made.model, photos, tmp_path / "out")
    assert [path.name for path in told.files] == ["photo0.png", "photo1.png"]
    assert (told.tokens, told.of) == (9, 36)
    for path in told.files:
        dark = [cell.mean() < 60 for cell in cells(path)]
        assert sum(dark) == 27


def test_patches_that_were_joined_share_a_colour(photos: Path, tmp_path: Path) -> None:
    made = reduce(tower("mlp"), method="tome", budget=Budget.remove(9))
    told = write(tower("mlp"), made.model, photos, tmp_path / "out")
    assert told.tokens < 36
    plain = [cell.std(axis=(0, 1)).max() < 1 for cell in cells(told.files[0])]
    assert sum(plain) > 36 - told.tokens


def test_weights_that_lie_beside_a_model_are_found(photos: Path, tmp_path: Path) -> None:
    model = PlainViT(width=64, heads=2, blocks=2, patch=24, image=96, classes=4).write(tmp_path / "vit.onnx")
    assert (tmp_path / "vit.onnx.data").exists()
    made = reduce(model, method="topk", budget=Budget.remove(2))
    assert write(model, made.model, photos, tmp_path / "out").tokens == 12


def test_labels_follow_the_grid() -> None:
    groups = np.array([[0, 1], [-1, 0]])
    label = labels(groups, 4, 6)
    assert label.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[-1, -1, -1, 0, 0, 0]] * 2
    made = drawn(np.full((4, 6, 3), 200, np.uint8), label, groups)
    assert made.shape == (4, 6, 3)


def test_what_cannot_be_drawn_is_said(photos: Path, tmp_path: Path) -> None:
    made = reduce(tower("mlp"), method="topk", budget=Budget.tokens([9]), site="output")
    with pytest.raises(TokenrtError, match="holds none"):
        write(tower("mlp"), made.model, tmp_path, tmp_path / "out")
    with pytest.raises(TokenrtError, match="was not made by tokenrt reduce"):
        write(tower("mlp"), tower("mlp"), photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_check_writes_them_too(photos: Path, tmp_path: Path) -> None:
    reduce(tower("mlp"), method="topk", budget=Budget.tokens([9]), site="output", output=tmp_path / "r.onnx")
    model, reduced = str(tower("mlp")), str(tmp_path / "r.onnx")
    call = CliRunner().invoke
    done = call(app, ["check", model, reduced, "--data", str(photos), "--pictures", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stdout + done.stderr
    assert len([*(tmp_path / "out").glob("*.png")]) == 2
    done = call(app, ["check", model, reduced, "--pictures", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "give a folder of them with --data" in done.stderr
