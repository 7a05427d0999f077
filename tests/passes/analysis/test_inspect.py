"""What inspect finds in every architecture: blocks, heads, protected tokens, and what follows the last block."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

import tokenrt
from tests import zoo
from tests.passes.helpers import tiny
from tests.passes.helpers.running import Variant, dynamo, exported, params
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import PLACES

SOME = (
    *(
        "hf_vit",
        "hf_deit_teacher",
        "hf_dinov2_classify",
        "hf_dinov3",
        "hf_siglip",
        "hf_beit_classify",
        "hf_bert",
    ),
    *("timm_vit_map", "timm_vit_parallel_scaling", "timm_deit_distilled", "timm_eva02", "torchvision_vit"),
    *("dense_taps", "post_norm"),
)
MORE = [dynamo("hf_dinov2", 20), dynamo("hf_bert", 23), dynamo("timm_eva", 23)]
WORDS = {
    "class-token": "protected tokens read by",
    "mean-pool": "mean pooling at",
    "attention-pool": "attention pooling at",
    "dense": "dense head, restored before",
    "tokens": "has one entry per token: tokens are restored for it",
}


@pytest.mark.parametrize("variant", params([*exported(SOME), *MORE], exported()))
def test_it_finds_what_the_architecture_is(variant: Variant) -> None:
    entry = zoo.entry(variant.name)
    found = inspect(variant.path(), shape=variant.shape)
    assert found.tokens == entry.tokens
    assert found.protected == entry.protected
    assert found.channels == entry.width
    assert [row.heads for row in found.blocks] == [entry.heads] * entry.blocks
    assert [row.width for row in found.blocks] == [entry.width // entry.heads] * entry.blocks
    assert [row.tokens for row in found.blocks] == [entry.tokens] * entry.blocks
    assert [row.sites for row in found.blocks[:-1]] == [PLACES] * (entry.blocks - 1)
    # Behind the last block only a pool by attention still computes something of each token; where the MLP reads what the
    # attention reads, so it is behind the last attention.
    apart = 1 if "parallel" in variant.name else 2
    assert found.blocks[-1].sites == (PLACES if "attention-pool" in entry.follows else PLACES[:apart])
    for part in entry.follows.split("+"):
        assert any(WORDS[part] in line for line in found.follows), (part, found.follows)
    attention = "Attention node" if variant.opset >= 23 else "softmax"
    assert {row.attention for row in found.blocks} == {attention}
    assert json.loads(json.dumps(found.as_dict()))["tokens"] == entry.tokens


@pytest.mark.parametrize("name", zoo.names("negative"))
def test_it_says_why_where_there_is_none(name: str) -> None:
    if "decode" in name:
        pytest.skip(
            "its dynamic axes are refused before any analysis; tests/passes/analysis/test_bad_models.py"
        )
    found = inspect(Variant(name).path())
    assert all(refusal.reason for refusal in found.refusals)
    assert found.refusals or name == "hf_segformer"


@pytest.mark.parametrize("attention", [tiny.ATTENTION, tiny.FLAT_ATTENTION, tiny.FOLDED_ATTENTION])
def test_heads_are_counted_however_they_are_laid_out(attention: str) -> None:
    found = tokenrt.inspect(ir.from_proto(tiny.model(attention=attention)))
    heads = 1 if attention is tiny.FLAT_ATTENTION else tiny.HEADS
    assert [(row.heads, row.width) for row in found.blocks] == [(heads, tiny.WIDTH // heads)] * 2


def test_it_shows_every_tensor_that_counts_tokens() -> None:
    found = tokenrt.inspect(ir.from_proto(tiny.model()))
    axes = {axis.tensor: axis.axes for axis in found.token_axes}
    assert axes["b0_scores"] == (2, 3)
    assert axes["b1_qh"] == (2,)
    assert axes["b1_kt"] == (3,)
    assert axes["b1_out"] == (1,)
    assert "first" not in axes


def test_the_command_prints_it(tmp_path: object) -> None:
    from typer.testing import CliRunner

    from tokenrt.cli import app

    path = str(Variant("timm_vit").path())
    shown = CliRunner().invoke(app, ["inspect", path])
    assert shown.exit_code == 0
    assert "4 blocks, 17 tokens (1 protected), 64 channels" in " ".join(shown.stdout.split())
    data = json.loads(CliRunner().invoke(app, ["inspect", path, "--json"]).stdout)
    assert len(data["blocks"]) == 4
