"""timm and torchvision models."""

from __future__ import annotations

from typing import Any

from torch import nn

from .entry import BLOCKS, HEADS, IMAGE, NEGATIVE, WIDTH, Entry, Image, zero

SMALL = {
    "img_size": IMAGE,
    "patch_size": 16,
    "embed_dim": WIDTH,
    "depth": BLOCKS,
    "num_heads": HEADS,
    "num_classes": 10,
}


def timm_vit(block: str = "Block", **options: Any) -> nn.Module:
    """A timm VisionTransformer of the zoo's size; `block` names one of timm's block classes."""
    from timm.models import vision_transformer

    made = vision_transformer.VisionTransformer(
        block_fn=getattr(vision_transformer, block), **{**SMALL, **options}
    )
    return Image(made)


def _deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return Image(VisionTransformerDistilled(**SMALL))


def _eva(**options: Any) -> nn.Module:
    from timm.models.eva import Eva

    return Image(Eva(**{**SMALL, "use_rot_pos_emb": True, **options}))


def _swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    made = SwinTransformer(
        img_size=IMAGE,
        patch_size=4,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        num_classes=10,
    )
    return Image(made)


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return Image(VisionTransformer(IMAGE, 16, BLOCKS, HEADS, WIDTH, 128, num_classes=10))


def _resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return Image(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10))


LOGITS, CLASS, MEAN, POOL = ("logits",), "class-token", "mean-pool", "attention-pool"
ZERO: dict[str, Any] = {"zero": zero("pos_embed")}
FUSED = {**ZERO, "fuse": "vit"}
NONE: dict[str, Any] = {"follows": "none", "tokens": 0, "protected": 0, "tags": NEGATIVE}

ENTRIES = (
    Entry("timm_vit", timm_vit, LOGITS, CLASS, **FUSED),
    Entry("timm_vit_patch8", lambda: timm_vit(patch_size=8), LOGITS, CLASS, 65, **FUSED),
    Entry("timm_vit_avg", lambda: timm_vit(global_pool="avg"), LOGITS, MEAN, **FUSED),
    Entry(
        "timm_vit_avg_no_class",
        lambda: timm_vit(global_pool="avg", class_token=False),
        LOGITS,
        MEAN,
        16,
        0,
        **FUSED,
    ),
    Entry(
        "timm_vit_map", lambda: timm_vit(global_pool="map", class_token=False), LOGITS, POOL, 16, 0, **FUSED
    ),
    Entry("timm_vit_qk_norm", lambda: timm_vit(qk_norm=True), LOGITS, CLASS, **FUSED),
    Entry("timm_vit_layer_scale", lambda: timm_vit(init_values=0.1), LOGITS, CLASS, **FUSED),
    Entry("timm_vit_registers", lambda: timm_vit(reg_tokens=3), LOGITS, CLASS, 20, 4, **FUSED),
    Entry("timm_vit_bias_free", lambda: timm_vit(qkv_bias=False, proj_bias=False), LOGITS, CLASS, **FUSED),
    Entry(
        "timm_vit_parallel_scaling",
        lambda: timm_vit("ParallelScalingBlock", init_values=0.1),
        LOGITS,
        CLASS,
        **ZERO,
    ),
    Entry("timm_vit_parallel_things", lambda: timm_vit("ParallelThingsBlock"), LOGITS, CLASS, **ZERO),
    Entry("timm_vit_res_post_norm", lambda: timm_vit("ResPostBlock"), LOGITS, CLASS, **FUSED),
    Entry("timm_deit_distilled", _deit, LOGITS, CLASS, 18, 2, **FUSED),
    Entry("timm_eva", _eva, LOGITS, MEAN),
    Entry(
        "timm_eva02",
        lambda: _eva(qkv_fused=False, swiglu_mlp=True, scale_mlp=True, global_pool="token"),
        LOGITS,
        CLASS,
    ),
    Entry("torchvision_vit", _torchvision, LOGITS, CLASS, zero=zero("pos_embedding"), fuse="vit"),
    Entry("timm_swin", _swin, LOGITS, **NONE),
    Entry("torchvision_resnet", _resnet, LOGITS, **NONE),
)
