"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a stream of patches without a batch, in the order of its merge units.

Everything made of the grid is computed here, once: positions, windows, and which patches see one another. Where not all do, as
in windows or frames, attention is one product over all patches with a constant mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.vision_language.contract import FEATURES, Family, Vision, side

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options

SIDE = 448
"""Pixels of a side of the picture where neither a grid nor a size is asked for; Qwen towers take any."""

# transformers calls an attention by its name, and hands over what it was given as cumulative lengths where the name says flash.
ATTENTION = "tokenrt_flash_segments"


@dataclass(frozen=True)
class Segments:
    """Which patches see one another, in place of cumulative lengths: `mask` [1,1,N,N] is 0 where so and -inf elsewhere.

    None where all do. Added numbers, because exporters write a mask of truths anew, as numbers, for every block.
    """

    mask: Tensor | None

    @classmethod
    def of(cls, ends: Tensor) -> Segments:
        """From cumulative lengths [segments + 1]."""
        import torch

        if len(ends) == 2:
            return cls(None)
        place = torch.arange(len(ends) - 1).repeat_interleave(ends.diff())
        return cls(torch.where(place[:, None] == place, 0.0, -torch.inf)[None, None])

    def like(self, stream: Tensor) -> Segments:
        """The same in the type of the stream."""
        return Segments(None if self.mask is None else self.mask.to(stream.dtype))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    cu_seq_lens_q: Segments,
    scaling: float,
    **__: Any,
) -> tuple[Tensor, None]:
    """All of [1,H,N,D] at once; the result is [1,N,H,D]."""
    from torch.nn.functional import scaled_dot_product_attention

    mixed = scaled_dot_product_attention(query, key, value, attn_mask=cu_seq_lens_q.mask, scale=scaling)
    return mixed.transpose(1, 2), None


def _windows(tower: Any, grid: Tensor) -> dict[str, Any]:
    """Qwen2.5-VL: the order by windows, and who sees whom in one."""
    from transformers.vision_utils import get_vision_window_index

    index, ends = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    return {"window_index": index, "cu_window_seqlens": Segments.of(ends), "max_window_seqlen": int(ends[-1])}


def _interpolation(tower: Any, grid: Tensor) -> dict[str, Any]:
    """Qwen3-VL: where each patch lies in the learned table of positions."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    return {"interp_indices": indices, "interp_weights": weights}


def _family(further: Callable[[Any, Tensor], dict[str, Any]]) -> Family:
    def open_(model: Any, options: Options) -> Vision:
        import torch
        from transformers import AttentionInterface
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        tower, config = model.visual, model.config.vision_config
        size = _grid(config, options)
        grid = torch.tensor([size])
        ends = get_vision_cu_seqlens(grid)
        given = {
            "position_ids": get_vision_position_ids(grid, tower.spatial_merge_size),
            "cu_seqlens": Segments.of(ends),
            "max_seqlen": int(ends[-1]),
            **further(tower, grid),
        }
        AttentionInterface.register(ATTENTION, _attention)
        tower.config._attn_implementation = ATTENTION

        def read(patches: Tensor) -> dict[str, Tensor]:
            ready = {
                key: each.like(patches) if isinstance(each, Segments) else each for key, each in given.items()
            }
            found = tower(patches, grid, **ready)
            deep = getattr(found, "deepstack_features", None) or ()
            return {FEATURES: found.pooler_output, **{f"deepstack_{n}": each for n, each in enumerate(deep)}}

        frames, rows, columns = size
        values = config.in_channels * config.temporal_patch_size * side(config.patch_size) ** 2
        return Vision(read, (frames * rows * columns, values), batched=False, notes=_notes(tower, size))

    return Family(open_, sized=False, takes=frozenset({"image_grid"}))


def _grid(config: Any, options: Options) -> tuple[int, int, int]:
    """Frames (of temporal_patch_size pictures each), rows and columns of patches. Raises: ExportError."""
    patch, unit = side(config.patch_size), config.spatial_merge_size
    if options.grid is not None:
        frames, rows, columns = options.grid
        if rows % unit or columns % unit:
            raise ExportError(
                f"image_grid is {options.image_grid}; {unit} x {unit} patches are merged into one row, so rows and columns "
                f"must be multiples of {unit}"
            )
        return frames, rows, columns
    wanted, step = options.image_size or SIDE, patch * unit
    if options.image_size is not None and wanted % step:
        near = max(step, round(wanted / step) * step)
        raise ExportError(
            f"image_size is {wanted}; patches of {patch} pixels are merged {unit} x {unit}, so it must be a multiple of {step}: "
            f"{near} is near"
        )
    rows = max(wanted // step, 1) * unit
    return 1, rows, rows


def _notes(tower: Any, size: tuple[int, int, int]) -> tuple[str, ...]:
    frames, rows, columns = size
    unit = tower.spatial_merge_size
    return (
        f"fixed: grid {frames}x{rows}x{columns}, positions and masks; the stream has no batch, one picture or clip a call",
        f"order: {unit} x {unit} patches of a merge unit stand together, so {unit * unit} rows of pixel_values make one of "
        f"{FEATURES}, {rows // unit} x {columns // unit} a frame in raster order",
    )


FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": _family(lambda tower, grid: {}),
    "qwen2_5_vl": _family(_windows),
    "qwen3_vl": _family(_interpolation),
}
