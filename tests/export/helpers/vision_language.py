"""The cached files of the vision parts of small seeded vision-language models, of pictures of 32 x 32 pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.zoo.files import folder
from tokenrt.export import export
from tokenrt.export.sources import vision_language
from tokenrt.perf.bench.towers import families
from tokenrt.perf.bench.towers.families import CONFIGURATIONS, saved

# name of a file -> (model type, options of its export)
FILES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CONFIGURATIONS if not name.startswith("qwen")},
    "llava_kept": ("llava", {"keep_layer": -1}),
    "llava_onevision_video": ("llava_onevision", {"image_grid": "4x1x1"}),
    **{name: (name, {"image_grid": "8x8"}) for name in CONFIGURATIONS if name.startswith("qwen")},
    "qwen2_vl_video": ("qwen2_vl", {"image_grid": "2x4x4"}),
}


@cache
def _state() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(families.__file__).read_bytes())
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
