from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenrt.perf.demo import pictures, subject
from tokenrt.perf.demo.pictures import CELL, GRID, Panel
from tokenrt.perf.pictures import draw


def photo(height: int = 168) -> subject.Photograph:
    """Noise with a place in the frame like that of a photograph in landscape format."""
    random = np.random.default_rng(0)
    side, sharp = subject.SIDE, subject.SHARP
    frame = np.zeros((side, side, 3), np.uint8)
    large = random.integers(60, 256, (sharp * height, sharp * side, 3)).astype(np.uint8)
    return subject.Photograph("noise", Path("noise.png"), frame, (side - height) // 2, 0, height, side, large)


def saliency(seed: int) -> subject.Array:
    return np.random.default_rng(seed).random((subject.SIDE, subject.SIDE)).astype(np.float32)


MERGED = np.repeat(np.repeat(np.arange(16).reshape(4, 4), 4, axis=0), 4, axis=1)
PRUNED = np.where(np.arange(GRID * GRID).reshape(GRID, GRID) % 3 == 0, -1, np.arange(256).reshape(GRID, GRID))


def panels() -> list[Panel]:
    return [
        Panel("unreduced", "257 tokens", 257, saliency(0)),
        Panel("merging", "r = 0.9", 17, saliency(1), MERGED),
        Panel("pruning", "r = 0.8", 171, saliency(2), PRUNED),
    ]


def inside(image: subject.Array, row: int, column: int, top: int) -> subject.Array:
    """The pixels of a patch without its outline; `top` is where the photograph begins in the frame."""
    first, left = row * CELL - subject.SHARP * top, column * CELL
    return image[first + 3 : first + CELL - 3, left + 3 : left + CELL - 3]


def blank(path: Path) -> bool:
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    return bool(pixels.std() < 10) or len(np.unique(pixels.reshape(-1, 3), axis=0)) < 1000


def test_merged_patches_share_their_mean_colour() -> None:
    image = pictures.tokens(photo(), MERGED)
    first, second = inside(image, 5, 1, 28), inside(image, 6, 2, 28)
    assert np.ptp(first, axis=(0, 1)).max() == 0
    assert np.array_equal(first[0, 0], second[0, 0])


def test_a_patch_that_stays_alone_shows_the_photograph() -> None:
    where = MERGED.copy()
    where[8, 8] = 99
    picture = photo()
    image = pictures.tokens(picture, where)
    assert np.array_equal(inside(image, 8, 8, 28), inside(picture.sharp, 8, 8, 28))


def test_dropped_patches_are_dark_and_grey() -> None:
    picture = photo()
    image = pictures.tokens(picture, PRUNED)
    dropped, kept = inside(image, 2, 1, 28), inside(image, 2, 2, 28)
    assert PRUNED[2, 1] < 0 <= PRUNED[2, 2]
    assert dropped.max() <= 255 * draw.DROPPED + 1
    assert np.ptp(dropped, axis=2).max() == 0
    assert np.array_equal(kept, inside(picture.sharp, 2, 2, 28))


def test_without_a_map_every_patch_is_outlined() -> None:
    picture = photo()
    image = pictures.tokens(picture, None)
    assert image.shape == picture.sharp.shape
    assert (image[:, CELL - 1] != picture.sharp[:, CELL - 1]).any()
    assert np.array_equal(inside(image, 4, 4, 28), inside(picture.sharp, 4, 4, 28))


@pytest.mark.parametrize("height", [168, 224])
def test_the_picture_of_a_photograph(tmp_path: Path, height: int) -> None:
    path = tmp_path / "noise.png"
    pictures.draw(photo(height), panels(), path)
    assert not blank(path)
    assert [file.name for file in tmp_path.iterdir()] == ["noise.png"]


def test_the_overview(tmp_path: Path) -> None:
    path = tmp_path / "overview.png"
    before, after, _ = panels()
    pictures.overview([(photo(), before, after)] * 3, "three of a kind", path)
    assert not blank(path)


def test_the_picture_of_the_front_page(tmp_path: Path) -> None:
    path = tmp_path / "front.jpg"
    before, after, _ = panels()
    pictures.front([(photo(), before, after)] * 2, "two of a kind", "what was measured", path)
    assert not blank(path)
    assert path.stat().st_size < 400_000
    with Image.open(path) as opened:
        assert opened.format == "JPEG"
        assert opened.width > opened.height


def test_kinds() -> None:
    assert [panel.kind for panel in panels()] == ["unreduced", "merged", "pruned"]
