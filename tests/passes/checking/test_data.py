"""Data as users have it: texts with empty lines, grey, transparent and broken pictures, folders that hold nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking import texts
from tokenrt.passes.checking.check_data import feeds
from tokenrt.passes.checking.inputs import Input
from tokenrt.passes.checking.pictures import picture

PIXELS = Input("pixels", np.dtype(np.float32), (None, 3, 8, 8))
WORDS = [
    Input(name, np.dtype(np.int64), (None, 6)) for name in ("input_ids", "attention_mask", "token_type_ids")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "a": 1, "cat": 2, "sat": 3, "[PAD]": 4}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_texts_become_ids_mask_and_types(folder: Path) -> None:
    (folder / "lines.txt").write_text("a cat sat\n\n   \ncat a cat a cat a cat a\n")
    rows, told = texts.read(WORDS, folder / "lines.txt")
    assert rows["input_ids"].tolist() == [[1, 2, 3, 4, 4, 4], [2, 1, 2, 1, 2, 1]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert rows["token_type_ids"].tolist() == [[0] * 6] * 2
    assert told == "2 texts of lines.txt (2 empty lines left out, 1 cut to 6 tokens)"


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("\n \n", WORDS, "no line of it holds a text"),
        ("a", [PIXELS], "texts serve inputs"),
        ("a", [*WORDS, Input("position_ids", np.dtype(np.int64), (None, 6))], "position_ids"),
        ("a", [Input("input_ids", np.dtype(np.int64), (None, None))], "N fixed"),
    ],
)
def test_texts_that_do_not_fit(folder: Path, text: str, inputs: list[Input], message: str) -> None:
    (folder / "lines.txt").write_text(text)
    with pytest.raises(TokenrtError, match=message):
        texts.read(inputs, folder / "lines.txt")


def test_a_text_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a")
    with pytest.raises(TokenrtError, match=r"tokenizer\.json beside them"):
        texts.read(WORDS, tmp_path / "lines.txt")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_pictures_of_every_kind(tmp_path: Path, mode: str) -> None:
    """The same grey, however it is stored; 16 bits too, which Pillow would cut off at 255."""
    image = Image.new("L", (20, 10), 100)
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 20), 100 * 256, np.uint16))
    elif mode != "L":
        image = image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    image.save(path)
    found = picture(PIXELS, path)
    assert found.shape == (3, 8, 8)
    wanted = (100 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    if mode != "1":
        np.testing.assert_allclose(found.mean((1, 2)), wanted, atol=0.05)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    (tmp_path / "worse.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    with pytest.raises(TokenrtError, match=r"worse\.png: not a readable picture"):
        _folder(tmp_path)


def test_pictures_of_mixed_sizes_and_a_limit(tmp_path: Path) -> None:
    for number, size in enumerate([(20, 10), (5, 40), (8, 8)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    runs, told = _folder(tmp_path)
    assert [run["pixels"].shape for run in runs] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert told == f"3 pictures of {tmp_path.name}"
    runs, told = _folder(tmp_path, most=1)
    assert [run["pixels"].shape for run in runs] == [(1, 3, 8, 8)]
    assert told == f"1 of 3 pictures of {tmp_path.name}"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenrtError, match="it holds none of them"):
        _folder(tmp_path)


def _folder(path: Path, most: int | None = None) -> tuple[list[dict[str, np.ndarray]], str]:
    import onnx_ir as ir

    empty = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    return feeds([PIXELS], empty, data=path, batch=2, seed=0, samples=1, most=most)
