"""The samples that a report shows: photographs as small JPEGs inside it, texts as their tokens."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.checking.pictures import PICTURES
from tokenrt.passes.checking.texts import pieces
from tokenrt.perf.report.document import Sample
from tokenrt.perf.report.look import free

if TYPE_CHECKING:
    from PIL import Image

SIDE, QUALITY = 384, 82
"""The longest side of a photograph in a page, in pixels, and its quality as JPEG."""


def of(data: Path, most: int, free: Sequence[int], tokens: int) -> list[Sample]:
    """The first `most` samples of data, in the order that models were fed. free: the tokens, of so many, that may leave.

    Raises: TokenrtError where the data holds nothing that can be shown.
    """
    if data.suffix == ".txt":
        texts = pieces(data, tokens, most)
        return [
            Sample(f"text {number + 1}", words=tuple(text[place] for place in free))
            for number, text in enumerate(texts)
        ]
    files = sorted(path for path in data.iterdir()) if data.is_dir() else []
    shown = [path for path in files if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    if not shown:
        raise TokenrtError(f"{data.name} holds arrays: there is no photograph or text to show")
    return [photograph(path) for path in shown[:most]]


def fitting(data: Path, most: int, structure: Structure) -> tuple[list[Sample], str]:
    """The first samples of data where the tokens of a transformer can be drawn on them; nothing and the reason where not."""
    cells = free(structure)
    try:
        found = of(data, most, cells, structure.tokens)
    except TokenrtError as why:
        return [], str(why)
    if found and found[0].picture and (structure.grid is None or prod(structure.grid) != len(cells)):
        return (
            [],
            "the layout of the patches is not known, so that there is nothing to draw on: say it with --grid",
        )
    return found, ""


def photograph(path: Path) -> Sample:
    """A file as a sample. Raises: TokenrtError naming it where it cannot be read."""
    try:
        from PIL import Image
    except ImportError as cause:
        raise DependencyError("pillow", "report", "showing photographs") from cause
    try:
        with Image.open(path) as image:
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            return framed(path.stem, image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as cause:
        raise TokenrtError(f"data {path}: not a readable picture: {cause}") from cause


def framed(name: str, image: Image.Image) -> Sample:
    """A picture in red, green and blue as a sample, its bytes inside."""
    held = io.BytesIO()
    image.save(held, format="JPEG", quality=QUALITY, optimize=True)
    code = base64.b64encode(held.getvalue()).decode()
    return Sample(name, f"data:image/jpeg;base64,{code}", *image.size)
