"""LLaVA-NeXT and LLaVA-OneVision: crops of one picture stitched into one sequence, or the frames of one clip.

The crops or frames are the tower's batch, so there is no other: one picture or clip a call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.vision_language.contract import FEATURES, Family, Vision, side
from tokenrt.export.sources.vision_language.llava import check, keep, projected
from tokenrt.export.sources.vision_language.towers import per_side, shape

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options


@dataclass(frozen=True)
class Mosaic:
    """How the crops of one picture are put together: the picture itself, small, then `rows` x `columns` crops of it.

    per_side: tokens of a crop's side. first, size: where the picture lies in the crops' tokens, beside padding, and its
    rows and columns of them. final: the same where the model shrinks long sequences.
    """

    rows: int
    columns: int
    per_side: int
    first: tuple[int, int]
    size: tuple[int, int]
    final: tuple[int, int]

    def stitch(self, features: Tensor, newline: Tensor) -> Tensor:
        """[1 + rows * columns, n * n, C] to [1, N, C], with a `newline` [C] at the end of each row of the picture."""
        import torch

        side, (top, left), (height, width) = self.per_side, self.first, self.size
        tiles = features[1:].reshape(self.rows, self.columns, side, side, -1).transpose(1, 2)
        whole = tiles.reshape(1, self.rows * side, self.columns * side, -1)
        picture = whole[:, top : top + height, left : left + width]
        if self.final != self.size:
            first = torch.nn.functional.interpolate(picture.permute(0, 3, 1, 2), self.final, mode="bilinear")
            picture = first.permute(0, 2, 3, 1)
        ends = newline.expand(1, self.final[0], 1, -1)
        return torch.cat((features[:1], torch.cat((picture, ends), 2).flatten(1, 2)), 1)

    def notes(self) -> tuple[str, ...]:
        """What was fixed, and what each row of the output is."""
        small, (height, width) = self.per_side**2, self.final
        return (
            f"fixed: {self.rows} x {self.columns} crops, the small picture before them; one picture a call",
            f"order: rows 0 to {small - 1} of {FEATURES} are the small picture, then {height} rows of {width} tokens, each "
            f"with a newline behind it: rows {small + width}, {small + 2 * width + 1}, ...",
        )


def _mosaic(model: Any, picture: tuple[int, int]) -> Mosaic:
    """For a picture of (height, width) pixels."""
    import torch
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    config, tokens, (_, pixels, _) = model.config, per_side(model), shape(model)
    rows, columns = (
        length // pixels for length in select_best_resolution(picture, config.image_grid_pinpoints)
    )
    padded = torch.empty(1, rows * tokens, columns * tokens)
    height, width = unpad_image(padded, picture).shape[1:]  # type: ignore[no-untyped-call]
    first = (rows * tokens - height) // 2, (columns * tokens - width) // 2
    most = getattr(config, "vision_aspect_ratio", "").removeprefix("anyres_max_")
    ratio = math.sqrt(height * width / (int(most) * tokens**2)) if most else 1.0
    final = (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)
    return Mosaic(rows, columns, tokens, first, (height, width), final)


def _picture(config: Any, options: Options) -> tuple[int, int]:
    """Height and width of the picture: what fills the crops asked for, or a square. Raises: ExportError."""
    pixels = side(config.vision_config.image_size)
    if options.grid is None:
        length = options.image_size or 2 * pixels
        return length, length
    frames, rows, columns = options.grid
    picture = rows * pixels, columns * pixels
    if frames != 1 or picture not in {tuple(each) for each in config.image_grid_pinpoints}:
        known = ", ".join(f"{h // pixels}x{w // pixels}" for h, w in config.image_grid_pinpoints)
        raise ExportError(
            f"image_grid is {options.image_grid}; the crops of this {config.model_type} make a grid of {known}"
        )
    return picture


def _crops(model: Any, options: Options) -> Vision:
    check(model, options)
    mosaic = _mosaic(model, _picture(model.config, options))
    kept = keep(model, options)

    def read(pixels: Tensor) -> dict[str, Tensor]:
        return {FEATURES: mosaic.stitch(projected(model, pixels), model.image_newline), **kept}

    crops = 1 + mosaic.rows * mosaic.columns
    return Vision(read, (crops, *shape(model)), batched=False, notes=mosaic.notes())


def _crops_or_frames(model: Any, options: Options) -> Vision:
    """LLaVA-OneVision: a grid of more than one frame is a clip, each frame pooled to half its rows and columns."""
    if options.grid is None or options.grid[0] == 1:
        return _crops(model, options)
    check(model, options)
    frames, rows, columns = options.grid
    if rows * columns != 1:
        raise ExportError(
            f"image_grid is {options.image_grid}; the frames of a clip are not cut into crops: write {frames}x1x1"
        )

    kept = keep(model, options)

    def read(pixels: Tensor) -> dict[str, Tensor]:
        import torch

        pooled = model.apply_pooling(projected(model, pixels)).flatten(0, 1)
        return {FEATURES: torch.cat((pooled, model.image_newline[None]))[None], **kept}

    per_side = math.ceil(shape(model)[1] // side(model.config.vision_config.patch_size) / 2)
    note = f"fixed: {frames} frames of {per_side} x {per_side} tokens in order, then one newline; one clip a call"
    return Vision(read, (frames, *shape(model)), batched=False, notes=(note,))


_TAKES = frozenset({"image_grid", "keep_layer"})
FAMILIES: Mapping[str, Family] = {
    "llava_next": Family(_crops, sized=False, takes=_TAKES),
    "llava_onevision": Family(_crops_or_frames, sized=False, takes=_TAKES),
}
