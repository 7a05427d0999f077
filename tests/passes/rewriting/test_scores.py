"""The score a method recomputes beside the attention is the attention the model itself computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from tests import zoo
from tests.passes.helpers.running import (
    POSITIVE,
    Variant,
    dynamo,
    exported,
    feeds,
    params,
    run,
    session,
)
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

# One or more of every way to write scale, bias, mask and heads; the others repeat them.
DEFAULT = [
    *exported(("hf_vit", "hf_vit_eager", "hf_deit", "hf_dinov3", "hf_clip", "hf_siglip", "hf_beit")),
    *exported(
        ("hf_bert", "hf_bert_eager", "timm_vit", "timm_vit_qk_norm", "timm_vit_registers", "timm_eva02")
    ),
    *exported(("timm_vit_parallel_scaling", "torchvision_vit", "post_norm", "hf_dinov2_registers")),
    Variant("hf_bert_eager", fused="transformers"),
    dynamo("timm_vit"),
]
MATRIX = [*exported(), *(dynamo(name, opset) for opset in (18, 20) for name in POSITIVE)]


def own(model: ir.Model, operator: str) -> list[onnx.NodeProto]:
    """The nodes of an operator that were there before the reduction."""
    nodes = ir.to_proto(model).graph.node
    return [node for node in nodes if node.op_type == operator and not node.name.startswith("tokenrt_block")]


def watched(model: ir.Model, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The scores that TokenSelect nodes read, and the attentions [B,H,N,N] of the model's own softmaxes."""
    proto = ir.to_proto(model)
    scores = [node.input[0] for node in proto.graph.node if node.op_type == "TokenSelect"]
    softmaxes = [node.output[0] for node in own(model, "Softmax")]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in scores + softmaxes)
    made = session(proto)
    found = run(made, feeds(name, 3))[-len(scores + softmaxes) :]
    return found[: len(scores)], found[len(scores) :]


def averaged(attention: np.ndarray, batch: int, score: str) -> np.ndarray:
    by_head = attention.reshape(batch, -1, *attention.shape[-2:])
    return by_head[:, :, 0].mean(axis=1) if score == "class" else by_head.mean(axis=(1, 2))


@pytest.mark.parametrize("score", ["class", "received"])
@pytest.mark.parametrize("variant", params(DEFAULT, MATRIX))
def test_the_score_is_the_attention(variant: Variant, score: str) -> None:
    if score == "class" and not zoo.entry(variant.name).protected:
        pytest.skip("no class token")
    if score == "received" and zoo.entry(variant.name).inputs.startswith("text"):
        pytest.skip("with a padding mask this score is refused; tests/passes/rewriting/masks/test_padding.py")
    result = reduce(
        variant.path(),
        method="topk",
        budget=Budget.remove(2, [0, 2]),
        options={"score": score},
        shape=variant.shape,
    )
    scores, attentions = watched(result.model, variant.name)
    assert len(scores) == 2
    for found, attention in zip(scores, [attentions[0], attentions[2]], strict=True):
        wanted = averaged(attention, 3, score)
        padding = wanted == 0  # Hidden from every query: it never wins over a word.
        assert padding.any() == zoo.entry(variant.name).inputs.startswith("text")
        assert (found[padding] < -1e30).all()
        np.testing.assert_allclose(found[~padding], wanted[~padding], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["timm_vit", "hf_vit"])
def test_a_whole_attention_is_repeated_and_computed_once(name: str, tmp_path: Path) -> None:
    """The model's own nodes feed nothing new, and ONNX Runtime finds that the others say the same."""
    variant = dynamo(name)
    reduced = reduce(
        variant.path(),
        method="zerotprune",
        budget=Budget.remove(2),
        shape=variant.shape,
    )
    before, after = (own(model, "Softmax") for model in (ir.load(variant.path()), reduced.model))
    everything = [node for node in ir.to_proto(reduced.model).graph.node if node.op_type == "Softmax"]
    assert len(everything) == 2 * len(after) == 2 * len(before)
    readers = [
        node
        for node in ir.to_proto(reduced.model).graph.node
        for node_input in node.input
        if node_input == after[0].output[0]
    ]
    assert all(not node.name.startswith("tokenrt_block") for node in readers)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    path = tmp_path / "reduced.onnx"
    ir.save(reduced.model, path)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert sum(node.op_type == "Softmax" for node in optimized) == len(before)
