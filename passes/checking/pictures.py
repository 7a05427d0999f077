"""Pictures as a model's input, of whatever size, colours and depth they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.passes.checking.inputs import Array, Input

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def picture(item: Input, path: Path) -> Array:
    """[3,H,W], resized to the input, its sides each for itself, and normalised with ImageNet's mean and deviation.

    Grey pictures become three equal channels, transparency is left out, and 16 bits of grey become eight.
    Raises: TokenrtError naming the picture.
    """
    sizes = item.dims
    if len(sizes) != 4 or sizes[1] != 3 or item.dtype.kind != "f" or sizes[2] is None or sizes[3] is None:
        raise TokenrtError(
            f"data {path}: pictures serve a float input [B,3,H,W] of fixed size, this is {item} of "
            f"{item.dtype}; use an .npz"
        )
    try:
        from PIL import Image
    except ImportError as cause:
        raise DependencyError("pillow", "demo", "reading pictures") from cause
    try:
        with Image.open(path) as image:
            resized = _colours(image).resize((sizes[3], sizes[2]), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as cause:
        raise TokenrtError(f"data {path}: not a readable picture: {cause}") from cause
    pixels = np.asarray(resized, np.float32) / 255
    mean, deviation = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    normal: Array = ((pixels - mean) / deviation).transpose(2, 0, 1)
    return normal.astype(item.dtype)


def _colours(image: Any) -> Any:
    """The picture in red, green and blue of eight bits each; Pillow alone would cut 16 bits off at 255."""
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
