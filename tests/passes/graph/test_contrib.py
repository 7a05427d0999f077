"""Fused nodes of ONNX Runtime, opened, against ONNX Runtime's own kernels; and the forms that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.helpers.running import close, run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.graph.canonicalize import Canonicalize
from tokenrt.passes.graph.contrib import OPENERS

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 8, 2
X = ("x", ["B", TOKENS, WIDTH])
SKIP = ("skip", ["B", TOKENS, WIDTH])
MASK = ("mask", ["B", TOKENS])
LENGTHS = ("lengths", ["B"])
IDS = ("ids", ["B", TOKENS])
SEGMENTS = ("segments", ["B", TOKENS])
SCORES = ("scores", ["B", HEADS, TOKENS, TOKENS])
QKV = [(name, ["B", TOKENS, WIDTH]) for name in ("q", "k", "v")]

Array = np.ndarray[Any, np.dtype[Any]]


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 2


GAMMA, BETA, BIAS = weight(WIDTH) + 1, weight(WIDTH, seed=1), weight(WIDTH, seed=2)
PROJECTION, PROJECTION_BIAS = weight(WIDTH, 3 * WIDTH), weight(3 * WIDTH, seed=3)
NARROW = weight(WIDTH, 2 * WIDTH + 4), weight(2 * WIDTH + 4, seed=3)
WORDS, PLACES, KINDS = weight(20, WIDTH), weight(TOKENS, WIDTH), weight(2, WIDTH)

# name -> (operator, inputs by name or constant, attributes, outputs)
FORMS: dict[str, tuple[str, list[Any], dict[str, Any], list[str]]] = {
    "BiasGelu": ("BiasGelu", [X, BIAS], {}, ["y"]),
    "Gelu": ("Gelu", [X], {}, ["y"]),
    "FastGelu": ("FastGelu", [X], {}, ["y"]),
    "FastGelu-with-bias": ("FastGelu", [X, BIAS], {}, ["y"]),
    "QuickGelu": ("QuickGelu", [X], {}, ["y"]),
    "QuickGelu-with-alpha": ("QuickGelu", [X], {"alpha": 1.0}, ["y"]),
    "SkipLayerNormalization": ("SkipLayerNormalization", [X, SKIP, GAMMA, BETA], {"epsilon": 1e-5}, ["y"]),
    "SkipLayerNormalization-without-beta": ("SkipLayerNormalization", [X, SKIP, GAMMA], {}, ["y"]),
    "SkipLayerNormalization-with-bias-and-sum": (
        "SkipLayerNormalization", [X, SKIP, GAMMA, BETA, BIAS], {}, ["y", "", "", "sum"],
    ),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization", [X, SKIP, GAMMA], {"epsilon": 1e-6}, ["y", "", "", "sum"],
    ),
    "FusedMatMul": ("FusedMatMul", [X, weight(WIDTH, 3)], {"alpha": 0.5}, ["y"]),
    "FusedMatMul-transposed": ("FusedMatMul", [X, weight(3, WIDTH)], {"transB": 1}, ["y"]),
    "FusedMatMul-of-itself": ("FusedMatMul", [X, SKIP], {"transA": 1, "alpha": 0.25}, ["y"]),
    "FusedMatMul-rows-first": ("FusedMatMul", [X, weight(TOKENS, WIDTH, 3)], {"transBatchA": 1}, ["y"]),
    "FusedMatMul-both-rows-first": (
        "FusedMatMul", [X, weight(3, TOKENS, WIDTH)], {"transBatchA": 1, "transBatchB": 1, "transB": 1}, ["y"],
    ),
    "FusedMatMul-columns-last": (
        "FusedMatMul", [X, SKIP], {"transBatchA": 1, "transA": 1, "transBatchB": 1}, ["y"],
    ),
    "Attention": ("Attention", [X, PROJECTION, PROJECTION_BIAS], {"num_heads": HEADS}, ["y"]),
    "Attention-with-scale": ("Attention", [X, PROJECTION, PROJECTION_BIAS], {"num_heads": HEADS, "scale": 0.3}, ["y"]),
    "Attention-with-mask": ("Attention", [X, PROJECTION, PROJECTION_BIAS, MASK], {"num_heads": HEADS}, ["y"]),
    "Attention-with-lengths": ("Attention", [X, PROJECTION, PROJECTION_BIAS, LENGTHS], {"num_heads": HEADS}, ["y"]),
    "Attention-with-bias-on-scores": (
        "Attention", [X, PROJECTION, PROJECTION_BIAS, None, None, SCORES], {"num_heads": HEADS}, ["y"],
    ),
    "Attention-with-narrow-values": (
        "Attention", [X, *NARROW], {"num_heads": HEADS, "qkv_hidden_sizes": [WIDTH, WIDTH, 4]}, ["y"],
    ),
    "MultiHeadAttention": ("MultiHeadAttention", [*QKV], {"num_heads": HEADS}, ["y"]),
    "MultiHeadAttention-with-scale": ("MultiHeadAttention", [*QKV], {"num_heads": HEADS, "scale": 0.2}, ["y"]),
    "MultiHeadAttention-with-bias": ("MultiHeadAttention", [*QKV, PROJECTION_BIAS], {"num_heads": HEADS}, ["y"]),
    "MultiHeadAttention-with-mask": ("MultiHeadAttention", [*QKV, None, MASK], {"num_heads": HEADS}, ["y"]),
    "MultiHeadAttention-with-bias-on-scores": (
        "MultiHeadAttention", [*QKV, None, None, SCORES], {"num_heads": HEADS}, ["y"],
    ),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization", [IDS, SEGMENTS, WORDS, PLACES, KINDS, GAMMA, BETA, MASK], {}, ["y", "counts"],
    ),
    "EmbedLayerNormalization-without-segments": (
        "EmbedLayerNormalization", [IDS, None, WORDS, PLACES, None, GAMMA, BETA], {}, ["y", ""],
    ),
}  # fmt: skip
INTEGERS = {"mask", "lengths", "ids", "segments"}
OUTPUTS = {"counts": TensorProto.INT32}


def model(form: str, opset: int = 17) -> onnx.ModelProto:
    operator, inputs, attributes, outputs = FORMS[form]
    return single(operator, inputs, attributes, outputs, opset)


def single(
    operator: str,
    inputs: list[Any],
    attributes: dict[str, Any],
    outputs: list[str],
    opset: int = 17,
    domain: str = "com.microsoft",
) -> onnx.ModelProto:
    names, declared, constants = [], [], []
    for place, item in enumerate(inputs):
        if item is None:
            names.append("")
        elif isinstance(item, tuple):
            kind = TensorProto.INT32 if item[0] in INTEGERS else TensorProto.FLOAT
            declared.append(helper.make_tensor_value_info(item[0], kind, item[1]))
            names.append(item[0])
        else:
            constants.append(numpy_helper.from_array(item, f"constant_{place}"))
            names.append(f"constant_{place}")
    node = helper.make_node(operator, names, outputs, name="fused", domain=domain, **attributes)
    results = [
        helper.make_tensor_value_info(name, OUTPUTS.get(name, TensorProto.FLOAT), None)
        for name in outputs
        if name
    ]
    graph = helper.make_graph([node], "one", declared, results, constants)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def given(proto: onnx.ModelProto) -> dict[str, Array]:
    made = np.random.default_rng(5)
    arrays: dict[str, Array] = {}
    for value in proto.graph.input:
        shape = [dim.dim_value or BATCH for dim in value.type.tensor_type.shape.dim]
        if value.name == "mask":
            arrays["mask"] = np.array([[1] * TOKENS, [1, 1, 1, 0, 0]], np.int32)
        elif value.name == "lengths":
            arrays["lengths"] = np.array([TOKENS, 3], np.int32)
        elif value.name in INTEGERS:
            arrays[value.name] = made.integers(0, 2, shape).astype(np.int32)
        else:
            arrays[value.name] = made.standard_normal(shape).astype(np.float32)
    return arrays


@pytest.mark.parametrize("form", FORMS)
def test_an_opened_node_says_what_the_fused_one_says(form: str) -> None:
    proto = model(form)
    opened = Canonicalize()(ir.from_proto(proto))
    assert {node.domain for node in opened.graph} <= {"", "ai.onnx"}
    assert [value.name for value in opened.graph.outputs] == [value.name for value in proto.graph.output]
    close(run(opened, given(proto)), run(proto, given(proto)))


def test_the_quirk_in_the_standard_domain_is_opened() -> None:
    """ONNX Runtime's own operator, which its optimizer writes into the domain of standard ones."""
    proto = single("SimplifiedLayerNormalization", [X, GAMMA], {"epsilon": 1e-6}, ["y"], domain="")
    opened = Canonicalize()(ir.from_proto(proto))
    assert "SimplifiedLayerNormalization" not in [node.op_type for node in opened.graph]
    close(run(opened, given(proto)), run(proto, given(proto)))


def test_every_opener_is_tested() -> None:
    elsewhere = {"SimplifiedLayerNormalization", "GroupQueryAttention"}  # below, and in test_grouped
    tested = {FORMS[form][0] for form in FORMS} | elsewhere
    assert {name for _, name in OPENERS} == tested


PAST = ("past", [2, 2, HEADS, 3, WIDTH // HEADS])
PAST_KEY = ("past_key", ["B", HEADS, 3, WIDTH // HEADS])
REFUSED: dict[str, tuple[str, list[Any], dict[str, Any], str]] = {
    "causal": (
        "Attention", [X, PROJECTION, PROJECTION_BIAS], {"num_heads": HEADS, "unidirectional": 1}, "causal",
    ),
    "cache": ("Attention", [X, PROJECTION, PROJECTION_BIAS, None, PAST], {"num_heads": HEADS}, "cache"),
    "rotary": (
        "Attention", [X, PROJECTION, PROJECTION_BIAS], {"num_heads": HEADS, "do_rotary": 1}, "rotary",
    ),
    "packed": ("MultiHeadAttention", [("qkv", ["B", TOKENS, HEADS, 3, 4])], {"num_heads": HEADS}, "packed"),
    "multi-head-cache": (
        "MultiHeadAttention", [*QKV, None, None, None, PAST_KEY, PAST_KEY], {"num_heads": HEADS}, "cache",
    ),
    "mask-of-three-axes": (
        "Attention", [X, PROJECTION, PROJECTION_BIAS, ("mask", ["B", TOKENS, TOKENS])], {"num_heads": HEADS}, "mask is neither",
    ),
    "batch-transposes-of-two-ranks": ("FusedMatMul", [X, weight(WIDTH, 3)], {"transBatchA": 1}, "ranks are 3 and 2"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_other_forms_are_refused_by_name(form: str) -> None:
    operator, inputs, attributes, message = REFUSED[form]
    with pytest.raises(UnsupportedError, match=f"com.microsoft.{operator} node 'fused': .*{message}"):
        Canonicalize()(ir.from_proto(single(operator, inputs, attributes, ["y"])))


def test_an_old_opset_names_the_remedy() -> None:
    with pytest.raises(UnsupportedError, match=r"node 'fused' needs opset 17 .* --opset 17"):
        Canonicalize()(ir.from_proto(model("Gelu", opset=14)))
