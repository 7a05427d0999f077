"""What a search does with data as people have it: pictures of every kind, broken ones, none, one, and numbers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tokenrt.cli import app
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.tune import search
from tokenrt.perf.tune.outcome import RUN

Image = pytest.importorskip("PIL.Image")

SMALL = PlainViT(width=32, heads=2, blocks=2, patch=16, image=64, classes=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("tune") / "model.onnx")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHAPES", "TRIES"):
        monkeypatch.setattr(search, name, 1)


def tune(model: Path, data: Path, run: Path) -> Result:
    words = ["tune", str(model), "--data", str(data), "-o", str(run), "--flops", "0.8", "--methods", "topk"]
    return CliRunner().invoke(app, [*words, "--threads", "1"])


def drawn(mode: str, size: tuple[int, int]) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(len(mode)).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    return Image.fromarray(pixels, mode)


def test_pictures_of_every_kind_and_size(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, mode, size in (("a", "L", (70, 40)), ("b", "RGB", (64, 64)), ("c", "RGBA", (31, 200))):
        drawn(mode, size).save(folder / f"{name}.png")
    done = tune(model, folder, tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "reduced.onnx").exists()


def test_one_picture_is_enough_to_run_and_said_to_be_little(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawn("RGB", (80, 60)).save(folder / "only.jpg")
    done = tune(model, folder, tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "One image says little of others" in " ".join(done.stdout.split())


def broken(folder: Path) -> None:
    drawn("RGB", (64, 64)).save(folder / "a.png")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")


def nothing(folder: Path) -> None:
    (folder / "notes.md").write_text("no pictures yet")


def not_numbers(folder: Path) -> None:
    np.save(folder / "a.npy", np.full((2, 3, 64, 64), np.nan, np.float32), allow_pickle=False)


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (broken, "torn.jpg: not a readable picture"),
        (nothing, "it holds none of them"),
        (not_numbers, "that are not finite for batch 0 of the data"),
    ],
)
def test_data_that_says_nothing_ends_the_search(fill: object, why: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert callable(fill)
    fill(folder)
    done = tune(model, folder, tmp_path / "run")
    assert done.exit_code == 2, done.output
    assert why in " ".join(done.stderr.split())
    assert not (tmp_path / "run" / RUN).exists()
    assert not (tmp_path / "run" / "reduced.onnx").exists()
