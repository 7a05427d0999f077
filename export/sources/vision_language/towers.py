"""Families that take one square picture a row of the batch: SigLIP, InternViT or SigLIP with free positions.

Crops of a larger picture are rows of the batch as well; the host puts their features one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenrt.export.sources.vision_language.contract import FEATURES, Family, Vision, raster, side

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options


def shape(model: Any) -> tuple[int, int, int]:
    """Channels, height and width of one picture."""
    config = model.config.vision_config
    return config.num_channels, side(config.image_size), side(config.image_size)


def per_side(model: Any) -> int:
    """Patches along a side of the picture."""
    return shape(model)[1] // side(model.config.vision_config.patch_size)


def _whole(model: Any, options: Options) -> Vision:
    """PaliGemma, Gemma3 (average pooling before the projector), InternVL (pixel shuffle): the model's own method."""
    arguments = {
        name: value
        for name in ("vision_feature_layer", "vision_feature_select_strategy")
        if (value := getattr(model.config, name, None)) is not None
    }

    def read(pixels: Tensor) -> dict[str, Tensor]:
        return {FEATURES: model.get_image_features(pixels, **arguments).pooler_output}

    pooled = getattr(model.multi_modal_projector, "kernel_size", 1)
    unit = pooled * round(1 / getattr(model.config, "downsample_ratio", 1))
    return Vision(read, shape(model), notes=(raster(per_side(model) // unit, unit),))


def _idefics(model: Any, options: Options) -> Vision:
    """Idefics3, SmolVLM: the patches of every picture are there, so positions are constant and nothing is masked."""
    import torch

    tower, size, patches = model.vision_model, shape(model), per_side(model)
    found: list[Tensor] = []
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, given: found.append(given[0])
    )
    tower.embeddings(torch.zeros(1, *size), torch.ones(1, patches, patches, dtype=torch.bool))
    hook.remove()
    (positions,) = found

    def read(pixels: Tensor) -> dict[str, Tensor]:
        embedded = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        placed = embedded + tower.embeddings.position_embedding(positions)
        hidden = tower.encoder(inputs_embeds=placed, attention_mask=None).last_hidden_state
        return {FEATURES: model.connector(tower.post_layernorm(hidden))}

    fixed = f"fixed: all {patches} x {patches} patches of a picture are there (pixel_attention_mask all true)"
    unit = model.connector.scale_factor
    return Vision(read, size, notes=(fixed, raster(patches // unit, unit)))


FAMILIES: Mapping[str, Family] = {
    "gemma3": Family(_whole),
    "idefics3": Family(_idefics),
    "internvl": Family(_whole),
    "paligemma": Family(_whole),
    "smolvlm": Family(_idefics),
}
