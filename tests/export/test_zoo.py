"""The zoo keeps its promises: seeded weights, named outputs, positions that can be zeroed, cached files."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from tests import zoo
from tests.zoo.files import FUSIONS
from tokenrt.export.quiet import quiet


def run(name: str, **options: bool) -> list[torch.Tensor]:
    with quiet(), torch.no_grad():
        module, inputs, outputs = zoo.build(name, **options)
        result = module(*inputs.values())
    found = [result] if isinstance(result, torch.Tensor) else list(result)
    assert len(found) == len(outputs)
    return found


@pytest.mark.parametrize("name", zoo.names())
def test_every_entry_runs(name: str) -> None:
    assert all(tensor.isfinite().all() for tensor in run(name))


def test_the_same_seed_gives_the_same_model() -> None:
    for first, again in zip(run("hf_vit"), run("hf_vit"), strict=True):
        assert torch.equal(first, again)


def pooled(name: str) -> bool:
    """Pictures in, and a last output that position embeddings alone make depend on the order of the patches."""
    entry = zoo.entry(name)
    return entry.zero is not None and entry.inputs == "image" and entry.follows != "dense"


@pytest.mark.parametrize("name", [name for name in zoo.names("positive") if pooled(name)])
def test_without_positions_the_order_of_patches_is_lost(name: str) -> None:
    with quiet(), torch.no_grad():
        module, _, outputs = zoo.build(name, zero_positions=True)
        pixels = zoo.examples(name)["pixel_values"]
        flipped = pixels.unflatten(2, (-1, 16)).flip(2).flatten(2, 3)
        one, other = module(pixels), module(flipped)
    last = (one, other) if len(outputs) == 1 else (one[-1], other[-1])
    torch.testing.assert_close(*last, atol=1e-4, rtol=1e-4)


def test_rotary_models_cannot_lose_their_positions() -> None:
    with quiet(), pytest.raises(LookupError, match="timm_eva has no position values"):
        zoo.build("timm_eva", zero_positions=True)


def test_tags_and_protection() -> None:
    assert len(zoo.names()) == len(set(zoo.names())) >= 45
    assert "timm_swin" in zoo.names("negative")
    assert zoo.names("dynamic-tokens") == ("hf_bert_dynamic",)
    assert (zoo.entry("hf_dinov2_registers").tokens, zoo.entry("hf_dinov2_registers").protected) == (20, 4)


def test_files_are_made_once_and_agree_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRT_TEST_CACHE", str(tmp_path))
    path = zoo.onnx("post_norm", 17, exporter="torchscript")
    stamp = path.stat().st_mtime_ns
    assert zoo.onnx("post_norm", 17, exporter="torchscript") == path
    assert path.stat().st_mtime_ns == stamp
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {key: value.numpy() for key, value in zoo.examples("post_norm").items()})
    torch.testing.assert_close(torch.from_numpy(got), run("post_norm")[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_fusions_make_nodes_of_onnxruntime(
    fusion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENRT_TEST_CACHE", str(tmp_path))
    exporter, opset = ("dynamo", 18) if fusion == "onnxscript" else ("torchscript", 17)
    path = zoo.onnx("hf_bert_eager", opset, exporter=exporter, fused=fusion)
    import onnx

    kinds = {node.op_type for node in onnx.load(path).graph.node if node.domain == "com.microsoft"}
    assert ("MultiHeadAttention" if fusion == "transformers-mha" else "Attention") in kinds
    assert "SkipLayerNormalization" in kinds
