"""Small seeded vision-language models, the folders of their configurations, and the cached files of their vision parts.

Towers are 32 wide with 2 heads and 3 layers and take 32 x 32 pictures in patches of 8; language models read 48 channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.zoo.files import folder
from tokenrt.export import export
from tokenrt.export.quiet import quiet
from tokenrt.export.sources import vision_language

TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8}
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
STREAM = {"depth": 3, "num_heads": 2, "patch_size": 8}
PLACES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
GRIDS = [[64, 32], [32, 64], [64, 64], [32, 96]]


def _clip() -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **TOWER, **PICTURE}


def _siglip(**more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **TOWER, **PICTURE, "vision_use_head": False, **more}


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **TEXT, **more}


CONFIGURATIONS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "gemma3": lambda: {
        "vision_config": _siglip(),
        "text_config": _text("gemma3_text", head_dim=12),
        "mm_tokens_per_image": 4,
        "image_token_index": 60,
    },
    "idefics3": lambda: {
        "vision_config": {"model_type": "idefics3_vision", **TOWER, **PICTURE},
        "text_config": _text("llama"),
        "image_token_id": 60,
    },
    "internvl": lambda: {
        "vision_config": {"model_type": "internvl_vision", **TOWER, **PICTURE},
        "text_config": _text("qwen2"),
        "image_token_id": 60,
    },
    "llava": lambda: {"vision_config": _clip(), "text_config": _text("llama"), "image_token_index": 60},
    "llava_next": lambda: {
        "vision_config": _clip(),
        "text_config": _text("llama"),
        "image_token_index": 60,
        "image_grid_pinpoints": GRIDS,
    },
    "llava_onevision": lambda: {
        "vision_config": _siglip(),
        "text_config": _text("qwen2"),
        "image_token_index": 60,
        "image_grid_pinpoints": GRIDS,
    },
    "paligemma": lambda: {
        "vision_config": _siglip(projection_dim=48),
        "text_config": _text("gemma", head_dim=12),
        "projection_dim": 48,
        "image_token_index": 60,
    },
    "qwen2_vl": lambda: {
        "vision_config": {**STREAM, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2},
        "text_config": TEXT,
        **PLACES,
    },
    "qwen2_5_vl": lambda: {
        "vision_config": {
            **STREAM,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "intermediate_size": 64,
            "window_size": 32,
            "fullatt_block_indexes": [0, 2],
        },
        "text_config": TEXT,
        **PLACES,
    },
    "qwen3_vl": lambda: {
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
    "smolvlm": lambda: {
        "vision_config": {"model_type": "smolvlm_vision", **TOWER, **PICTURE},
        "text_config": _text("llama"),
        "image_token_id": 60,
        "scale_factor": 2,
    },
}

# name of a file -> (model type, options of its export)
FILES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CONFIGURATIONS if not name.startswith("qwen")},
    "llava_kept": ("llava", {"keep_layer": -1}),
    "llava_onevision_video": ("llava_onevision", {"image_grid": "4x1x1"}),
    **{name: (name, {"image_grid": "8x8"}) for name in CONFIGURATIONS if name.startswith("qwen")},
    "qwen2_vl_video": ("qwen2_vl", {"image_grid": "2x4x4"}),
}


def configuration(kind: str, **changes: Any) -> Any:
    """The configuration of a model type, with `changes` to it."""
    from transformers import AutoConfig

    with quiet():
        return AutoConfig.for_model(kind, **{**CONFIGURATIONS[kind](), **changes})


def saved(kind: str, root: Path, **changes: Any) -> Path:
    """A folder below `root` with the configuration alone."""
    path = root / kind
    configuration(kind, **changes).save_pretrained(path)
    return path


@cache
def _state() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(Path(vision_language.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def onnx(name: str, opset: int = 18, exporter: str = "dynamo", dtype: str = "fp32") -> Path:
    """Path of a file of `FILES`, exported on the first call, with random weights of seed 0."""
    root = folder() / f"vision-language-{_state()}"
    path = root / f"{name}__{exporter}__op{opset}__{dtype}.onnx"
    if path.exists():
        return path
    root.mkdir(exist_ok=True)
    kind, options = FILES[name]
    draft = path.with_name(f"{os.getpid()}-{path.name}")
    try:
        export(
            f"hf:{saved(kind, root)}",
            draft,
            part="vision",
            random_weights=True,
            opset=opset,
            exporter=exporter,
            dtype=dtype,
            **options,
        )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
