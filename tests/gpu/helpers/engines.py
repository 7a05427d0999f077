"""A small vision transformer reduced by a method, as TensorRT engines of its forms, and how they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tokenrt
from tests.gpu.helpers import needs
from tokenrt.perf.bench.plain_vit import PlainViT

FORM = PlainViT(width=192, heads=3, blocks=4, patch=16, image=224, classes=10)


def reduced(folder: Path, method: str, removed: int) -> Path:
    """The model with its nodes as functions, float32."""
    model = FORM.write(folder / "vit.onnx")
    tokenrt.reduce(
        model, output=folder / "reduced.onnx", method=method, budget=tokenrt.Budget.remove(removed)
    )
    return folder / "reduced.onnx"


def run(model: Path, feeds: Mapping[str, Any], flags: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Build an engine for this GPU and run it once."""
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
    )

    profile = Profile()
    for name, array in feeds.items():
        profile.add(name, array.shape, array.shape, array.shape)
    network = NetworkFromOnnxPath(str(model), strongly_typed=True, flags=list(flags) or None)
    with TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile]))) as runner:
        return {name: np.array(found) for name, found in runner.infer(dict(feeds)).items()}


def library() -> Path:
    """The plugin library for this GPU."""
    from tokenrt.plugins.library import build

    assert needs.CAPABILITY is not None
    return build(arch=(needs.CAPABILITY,)).path
