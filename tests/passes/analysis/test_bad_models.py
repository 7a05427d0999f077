"""Models no token can leave, each refused by name; and parts of models that look odd but are handled rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import tokenrt
from tests import zoo
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import refused_call, refused_line
from tests.passes.helpers.running import Variant, close, dynamo, run
from tokenrt.errors import NothingToDoError, UnsupportedError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

CACHE = [f"past_{kind}_{block}" for block in (0, 1) for kind in ("key", "value")]
PAST = ["--shape", "attention_mask=Bx8", *(w for name in CACHE for w in ("--shape", f"{name}=Bx4x7x16"))]
GROUPED = [word.replace("Bx4", "Bx2") for word in PAST]

ZOO = {
    "swin": (Variant("timm_swin"), [], "windows"),
    "resnet": (Variant("torchvision_resnet"), [], "no attention found"),
    "segformer": (Variant("hf_segformer"), [], "queries attend to 4 keys"),
    "no-attention": (Variant("mlp"), [], "no attention found"),
    "llama-decode": (
        Variant("hf_llama_decode"),
        [],
        "'attention_mask' .* is dynamic.*--shape attention_mask",
    ),
    "llama-decode-fixed": (Variant("hf_llama_decode"), GROUPED, "2 queries attend to 8 keys|cache"),
    "gpt2-decode-fixed": (Variant("hf_gpt2_decode"), PAST, "1 queries attend to 8 keys|cache"),
    "llama-prefill": (Variant("hf_llama_prefill"), [], "causal"),
    "parallel-things": (Variant("timm_vit_parallel_things"), [], "Concat node .* before a residual"),
    "dynamic-text": (
        Variant("hf_bert_dynamic"),
        [],
        r"axis 1 .*input_ids.* is dynamic.*--shape input_ids=Bx128",
    ),
}


@pytest.mark.parametrize("kind", ZOO)
def test_a_model_that_takes_no_reduction(kind: str, tmp_path: Path) -> None:
    variant, words, message = ZOO[kind]
    target = tmp_path / "out.onnx"
    shape = words[1::2]
    refused_call(
        tmp_path,
        message,
        lambda: reduce(variant.path(), method="tome", budget=Budget.remove(2), shape=shape, output=target),
    )
    refused_line(
        tmp_path, message, "reduce", variant.path(), "-o", target, "--method", "tome", "--remove", 2, *words
    )


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("name", zoo.names("negative"))
def test_so_it_is_through_the_other_exporter(name: str, opset: int) -> None:
    words = {"hf_llama_decode": GROUPED[1::2], "hf_gpt2_decode": PAST[1::2]}.get(name, [])
    with pytest.raises((NothingToDoError, UnsupportedError)):
        reduce(dynamo(name, opset).path(), method="tome", budget=Budget.remove(2), shape=words)


@pytest.mark.parametrize("name", ["timm_swin", "torchvision_resnet", "hf_segformer", "mlp"])
def test_allow_noop_writes_it_unchanged(name: str, tmp_path: Path) -> None:
    path, target = Variant(name).path(), tmp_path / "out.onnx"
    reduce(path, method="tome", budget=Budget.remove(2), allow_noop=True, output=target)
    given = {key: value.numpy() for key, value in zoo.examples(name).items()}
    close(run(target, given), run(path, given))


def test_inspect_tells_why_and_succeeds() -> None:
    from typer.testing import CliRunner

    from tokenrt.cli import app

    done = CliRunner().invoke(app, ["inspect", str(Variant("timm_swin").path())])
    assert done.exit_code == 0
    assert "windows" in done.stdout


BETWEEN = "  b1_in = {operator} (b0_out)\n"
OWN = ', "own": 1'


def refused(model: onnx.ModelProto, message: str, tmp_path: Path, method: str = "tome") -> None:
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    refused_call(
        tmp_path,
        message,
        lambda: tokenrt.reduce(path, method=method, budget=Budget.remove(1), output=target),
    )
    refused_line(tmp_path, message, "reduce", path, "-o", target, "--method", method, "--remove", 1)


def test_an_unknown_operator_between_the_blocks() -> None:
    """It gets every token, as an operator that needs all places does; what is behind it is no block of this transformer."""
    model = tiny.model(between=BETWEEN.format(operator="own.Mystery"), imports=OWN)
    made = reduce(ir.from_proto(model), method="tome", budget=Budget.remove(1))
    assert [site.block for site in made.plan.sites] == [0]
    assert any("Mystery" in line for line in made.report.restored)


def test_an_unknown_operator_in_a_block(tmp_path: Path) -> None:
    rest = tiny.REST.replace("Relu", "own.Mystery")
    refused(tiny.model(rest=rest, imports=OWN), r"own\.Mystery", tmp_path)


def test_an_unknown_operator_on_the_tokens_behind_the_last_block() -> None:
    head = (
        "  seen = own.Mystery (b1_out)\n  first = Gather <axis = 1> (seen, zero)\n  y = MatMul (first, w1)\n"
    )
    made = reduce(ir.from_proto(tiny.model(head, imports=OWN)), method="tome", budget=Budget.tokens([5, 4]))
    assert made.plan.counts() == [6, 5, 4]
    assert any("Mystery" in line for line in made.report.restored)


def test_an_unknown_operator_where_no_tokens_are_left_does_no_harm() -> None:
    """It reads the logits; nothing is known of its output but that no token reaches it."""
    head = "  first = Gather <axis = 1> (b1_out, zero)\n  z = MatMul (first, w1)\n  y = own.Mystery (z)\n"
    made = reduce(ir.from_proto(tiny.model(head, imports=OWN)), method="tome", budget=Budget.tokens([5, 4]))
    assert made.plan.counts() == [6, 5, 4]
    assert "Mystery" in [node.op_type for node in made.model.graph]


RUN_TIME = {
    "NonZero": "  i = NonZero (b0_out)\n  j = Cast <to = 1> (i)\n  s = ReduceSum (j)\n  b1_in = Add (b0_out, s)\n",
    "Unique": "  u = Unique (b0_out)\n  s = ReduceSum (u)\n  b1_in = Add (b0_out, s)\n",
}
WHOLE = {
    "Einsum": '  b1_in = Einsum <equation = "bnc,cd,de->bne"> (b0_out, wq, wk)\n',
    "Hardmax": "  b1_in = Hardmax <axis = 1> (b0_out)\n",
}


@pytest.mark.parametrize("name", RUN_TIME)
def test_a_shape_that_only_the_run_tells(name: str, tmp_path: Path) -> None:
    refused(tiny.model(between=RUN_TIME[name]), f"{name} node", tmp_path)


WHOLE |= {
    "weights-along-the-tokens": "  t = Transpose <perm = [0, 2, 1]> (b0_out)\n  u = MatMul (t, mix)\n"
    "  b1_in = Transpose <perm = [0, 2, 1]> (u)\n",
    "statistics-over-the-tokens": "  b1_in = LayerNormalization <axis = 1> (b0_out, places)\n",
}
PLACED = {
    "neighbours": "  t = Transpose <perm = [0, 2, 1]> (b0_out)\n"
    "  u = AveragePool <kernel_shape = [3], pads = [1, 1]> (t)\n"
    "  b1_in = Transpose <perm = [0, 2, 1]> (u)\n",
    "a-token-shift": "  head = Slice (b0_out, one, six, one)\n  tail = Slice (b0_out, nil, one, one)\n"
    "  b1_in = Concat <axis = 1> (head, tail)\n",
}


WHOLE |= PLACED


def between(text: str) -> onnx.ModelProto:
    made = tiny.model(between=text)
    extra = {"mix": np.eye(6, dtype=np.float32) * 2, "one": [1], "six": [6], "nil": [0]}
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in extra.items() if name in used
    )
    return made


@pytest.mark.parametrize("kind", WHOLE)
def test_what_needs_every_place_gets_every_place(kind: str) -> None:
    """Tokens leave in the first block only and are all there again before it; the second block is another transformer."""
    made = between(WHOLE[kind])
    result = reduce(ir.from_proto(made), method="tome", budget=Budget.remove(1))
    assert [site.block for site in result.plan.sites] == [0]
    assert result.report.restored
    if kind in PLACED:
        assert {site.transformer for site in result.report.sites} == {0, 1}
        assert any("of 2 transformers these keep their tokens: 1" in note for note in result.plan.notes)
    else:
        assert any("the token axis does not reach it" in site.reason for site in result.report.sites)
    given = tiny.picture()
    given["x"][:, 2] = given["x"][:, 1]
    close(run(result.model, given), run(made, given))
