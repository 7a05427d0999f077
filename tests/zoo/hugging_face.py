"""Hugging Face models: pictures, clips, text, and the decoders that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import (
    BLOCKS,
    HEADS,
    IMAGE,
    NEGATIVE,
    PICTURES,
    VOCABULARY,
    WIDTH,
    WORDS,
    Decode,
    Entry,
    Image,
    Pick,
    Text,
    embedded,
    logits,
    zero,
)

SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
}
LLAMA = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCABULARY}
SEGFORMER = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32}

TABLE = zero("position_embeddings")
CLIP_TABLE = zero("position_embedding.weight")
BERT_TABLE = zero("position_embeddings.weight")
BEIT_BIAS = zero("relative_position_bias_table")


def made(cls: str, config: str, attention: str = "sdpa", **options: Any) -> nn.Module:
    """A model of exactly these configuration values; `attention` is sdpa or eager."""
    import transformers

    settings = getattr(transformers, config)(**options)
    settings._attn_implementation = attention
    model: nn.Module = getattr(transformers, cls)(settings)
    return model


def hugging_face(cls: str, config: str, **options: Any) -> nn.Module:
    """A vision model of the zoo's size."""
    return made(cls, config, **{**SMALL, "image_size": IMAGE, "patch_size": 16, **options})


def _vision(cls: str, config: str, pick: Pick = embedded, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Image(hugging_face(cls, config, **options), pick)


def _bert(cls: str, pick: Pick = embedded, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Text(made(cls, "BertConfig", **{**SMALL, "vocab_size": VOCABULARY, **options}), pick)


def _hidden_states() -> nn.Module:
    return Image(
        hugging_face("ViTModel", "ViTConfig"),
        lambda r: (*r.hidden_states, r.pooler_output),
        output_hidden_states=True,
    )


def _no_clip_table(module: nn.Module) -> None:
    """Zero the sine table of a clip, which is neither parameter nor buffer."""
    for part in module.modules():
        table = vars(part).get("position_embeddings")
        if isinstance(table, torch.Tensor):
            table.zero_()


def _three_logits(result: Any) -> Any:
    return result.logits, result.cls_logits, result.distillation_logits


BOTH, LOGITS = ("last_hidden_state", "pooler_output"), ("logits",)
PRESENT = ("logits", "present_key_0", "present_value_0", "present_key_1", "present_value_1")
STATES = (*(f"hidden_state_{block}" for block in range(BLOCKS + 1)), "pooler_output")
THREE = ("logits", "cls_logits", "distillation_logits")
CLASS, MEAN, POOL, BOTH_WAYS = (
    "tokens+class-token",
    "tokens+mean-pool",
    "tokens+attention-pool",
    "class-token+mean-pool",
)

VIT = {"zero": TABLE, "fuse": "vit"}
CLIP = {"zero": CLIP_TABLE, "fuse": "vit"}
BERT: dict[str, Any] = {"tokens": WORDS, "inputs": "text", "zero": BERT_TABLE, "fuse": "bert"}
DYNAMIC = {**BERT, "inputs": "text-dynamic", "tags": frozenset({"positive", "dynamic-tokens"})}
DECODE: dict[str, Any] = {"tokens": 1, "protected": 0, "tags": NEGATIVE, "blocks": 2}
DINO, REGISTERS = {"mlp_ratio": 2}, {"num_register_tokens": 3}
BEIT = {"use_relative_position_bias": True}
CLIP_OF = {"num_frames": PICTURES, "tubelet_size": 2}
VIDEO: dict[str, Any] = {"tokens": 64, "protected": 0, "inputs": "video", "zero": _no_clip_table}

_dinov2 = _vision("Dinov2Model", "Dinov2Config", **DINO)
_swiglu = _vision("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True, **DINO)
_dinov2_head = _vision("Dinov2ForImageClassification", "Dinov2Config", logits, **DINO)
_dinov2_registers = _vision("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **DINO, **REGISTERS)
_dinov3 = _vision("DINOv3ViTModel", "DINOv3ViTConfig", **REGISTERS)
_deit_teacher = _vision("DeiTForImageClassificationWithTeacher", "DeiTConfig", _three_logits)
_vit_head = _vision("ViTForImageClassification", "ViTConfig", logits)
_projection = _vision(
    "CLIPVisionModelWithProjection", "CLIPVisionConfig", lambda r: r.image_embeds, projection_dim=32
)
_siglip_pooled = _vision("SiglipVisionModel", "SiglipVisionConfig", lambda r: r.pooler_output)
_beit_head = _vision("BeitForImageClassification", "BeitConfig", logits, **BEIT)
_videomae = _vision("VideoMAEModel", "VideoMAEConfig", lambda r: r.last_hidden_state, **CLIP_OF)
_vivit = _vision("VivitModel", "VivitConfig", **{**CLIP_OF, "tubelet_size": [2, 16, 16]})
_videomae_head = _vision("VideoMAEForVideoClassification", "VideoMAEConfig", logits, **CLIP_OF)

ENTRIES = (
    Entry("hf_vit", _vision("ViTModel", "ViTConfig"), BOTH, CLASS, **VIT),
    Entry("hf_vit_patch8", _vision("ViTModel", "ViTConfig", patch_size=8), BOTH, CLASS, 65, **VIT),
    Entry("hf_vit_eager", _vision("ViTModel", "ViTConfig", attention="eager"), BOTH, CLASS, **VIT),
    Entry("hf_vit_classify", _vit_head, LOGITS, "class-token", **VIT),
    Entry("hf_vit_hidden_states", _hidden_states, STATES, CLASS, **VIT),
    Entry("hf_deit", _vision("DeiTModel", "DeiTConfig"), BOTH, CLASS, 18, 2, **VIT),
    Entry("hf_deit_teacher", _deit_teacher, THREE, "class-token", 18, 2, **VIT),
    Entry("hf_dinov2", _dinov2, BOTH, CLASS, **VIT),
    Entry("hf_dinov2_swiglu", _swiglu, BOTH, CLASS, **VIT),
    Entry("hf_dinov2_classify", _dinov2_head, LOGITS, BOTH_WAYS, **VIT),
    Entry("hf_dinov2_registers", _dinov2_registers, BOTH, CLASS, 20, 4, **VIT),
    Entry("hf_dinov3", _dinov3, BOTH, CLASS, 20, 4),
    Entry("hf_clip", _vision("CLIPVisionModel", "CLIPVisionConfig"), BOTH, CLASS, **CLIP),
    Entry("hf_clip_projection", _projection, ("image_embeds",), "class-token", **CLIP),
    Entry("hf_siglip", _vision("SiglipVisionModel", "SiglipVisionConfig"), BOTH, POOL, 16, 0, **CLIP),
    Entry("hf_siglip_pooled", _siglip_pooled, ("pooler_output",), "attention-pool", 16, 0, **CLIP),
    Entry("hf_beit", _vision("BeitModel", "BeitConfig", **BEIT), BOTH, MEAN, zero=BEIT_BIAS),
    Entry("hf_beit_classify", _beit_head, LOGITS, "mean-pool", zero=BEIT_BIAS),
    Entry("hf_videomae", _videomae, ("last_hidden_state",), "tokens", **VIDEO),
    Entry("hf_videomae_classify", _videomae_head, LOGITS, "mean-pool", **VIDEO),
    Entry("hf_vivit", _vivit, BOTH, CLASS, **{**VIDEO, "tokens": 65, "protected": 1, "zero": TABLE}),
    Entry("hf_bert", _bert("BertModel"), BOTH, CLASS, **BERT),
    Entry("hf_bert_eager", _bert("BertModel", attention="eager"), BOTH, CLASS, **BERT),
    Entry("hf_bert_classify", _bert("BertForSequenceClassification", logits), LOGITS, "class-token", **BERT),
    Entry("hf_bert_dynamic", _bert("BertModel"), BOTH, CLASS, **DYNAMIC),
    Entry(
        "hf_segformer",
        lambda: Image(made("SegformerForSemanticSegmentation", "SegformerConfig", **SEGFORMER), logits),
        LOGITS,
        "none",
        0,
        0,
        tags=NEGATIVE,
    ),
    Entry(
        "hf_llama_decode",
        lambda: Decode(made("LlamaForCausalLM", "LlamaConfig", **LLAMA)),
        PRESENT,
        "tokens",
        inputs="decode-grouped",
        **DECODE,
    ),
    Entry(
        "hf_gpt2_decode",
        lambda: Decode(made("GPT2LMHeadModel", "GPT2Config", **GPT2)),
        PRESENT,
        "tokens",
        inputs="decode",
        **DECODE,
    ),
    Entry(
        "hf_llama_prefill",
        lambda: Text(made("LlamaForCausalLM", "LlamaConfig", **LLAMA), logits, use_cache=False),
        LOGITS,
        "tokens",
        WORDS,
        0,
        inputs="text",
        tags=frozenset({"causal"}),
        blocks=2,
    ),
)
