"""Configurations of small vision-language models: no weights to download, every structure of the real ones.

Towers are 32 wide with 2 heads and 3 layers, in patches of 8 pixels; language models read 48 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
PATCH, SIDE = 8, 32
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STREAM = {"depth": 3, "num_heads": 2, "patch_size": PATCH}
PLACES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
GRIDS = ((2, 1), (1, 2), (2, 2), (1, 3))
"""Crops that LLaVA-NeXT and LLaVA-OneVision cut a picture into, as rows and columns."""


def picture(side: int) -> dict[str, Any]:
    """What a tower of square pictures is told of them."""
    return {"image_size": side, "patch_size": PATCH}


def _clip(side: int) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **TOWER, **picture(side)}


def _siglip(side: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        **TOWER,
        **picture(side),
        "vision_use_head": False,
        **more,
    }


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **TEXT, **more}


def _crops(side: int) -> list[list[int]]:
    return [[rows * side, columns * side] for rows, columns in GRIDS]


CONFIGURATIONS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "gemma3": lambda side: {
        "vision_config": _siglip(side),
        "text_config": _text("gemma3_text", head_dim=12),
        "mm_tokens_per_image": (side // (2 * PATCH)) ** 2,
        "image_token_index": 60,
    },
    "idefics3": lambda side: {
        "vision_config": {"model_type": "idefics3_vision", **TOWER, **picture(side)},
        "text_config": _text("llama"),
        "image_token_id": 60,
    },
    "internvl": lambda side: {
        "vision_config": {"model_type": "internvl_vision", **TOWER, **picture(side)},
        "text_config": _text("qwen2"),
        "image_token_id": 60,
    },
    "llava": lambda side: {
        "vision_config": _clip(side),
        "text_config": _text("llama"),
        "image_token_index": 60,
    },
    "llava_next": lambda side: {
        "vision_config": _clip(side),
        "text_config": _text("llama"),
        "image_token_index": 60,
        "image_grid_pinpoints": _crops(side),
    },
    "llava_onevision": lambda side: {
        "vision_config": _siglip(side),
        "text_config": _text("qwen2"),
        "image_token_index": 60,
        "image_grid_pinpoints": _crops(side),
    },
    "paligemma": lambda side: {
        "vision_config": _siglip(side, projection_dim=48),
        "text_config": _text("gemma", head_dim=12),
        "projection_dim": 48,
        "image_token_index": 60,
    },
    "qwen2_vl": lambda side: {
        "vision_config": {**STREAM, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2},
        "text_config": TEXT,
        **PLACES,
    },
    "qwen2_5_vl": lambda side: {
        "vision_config": {
            **STREAM,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "intermediate_size": 64,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [0, 2],
        },
        "text_config": TEXT,
        **PLACES,
    },
    "qwen3_vl": lambda side: {
        "vision_config": {
            **STREAM,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "intermediate_size": 64,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        "text_config": {**TEXT, "head_dim": 12},
        **PLACES,
    },
    "smolvlm": lambda side: {
        "vision_config": {"model_type": "smolvlm_vision", **TOWER, **picture(side)},
        "text_config": _text("llama"),
        "image_token_id": 60,
        "scale_factor": 2,
    },
}
"""Model type -> its configuration for pictures of so many pixels a side; Qwen's towers take a grid of any size instead."""


def configuration(kind: str, side: int = SIDE, **changes: Any) -> Any:
    """The configuration of a model type, with `changes` to it."""
    from transformers import AutoConfig

    from tokenrt.export.quiet import quiet

    with quiet():
        return AutoConfig.for_model(kind, **{**CONFIGURATIONS[kind](side), **changes})


def saved(kind: str, root: Path, side: int = SIDE) -> Path:
    """A folder below `root` with the configuration alone."""
    path = root / f"{kind}-{side}"
    configuration(kind, side).save_pretrained(path)
    return path
