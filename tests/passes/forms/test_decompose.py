"""Attention nodes written out as products and a softmax: the same numbers, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.forms.test_lower import operators, parse, run
from tokenrt import lower
from tokenrt.errors import UnsupportedError
from tokenrt.passes.forms.legalize import Accepts, legalize


def attention(inputs: dict[str, str], attributes: str = "", opset: int = 23, call: str = "") -> ir.Model:
    """A model of one Attention node; inputs are types by name, `call` the node's inputs where they differ."""
    declared = ", ".join(f"{kind} {name}" for name, kind in inputs.items())
    kind = inputs["q"]
    result = f"{kind.split('[')[0]}[{', '.join('BNHD'[: kind.count(',') + 1])}]"
    body = f"y = Attention {attributes} ({call or ', '.join(inputs)})"
    head = f'<ir_version: 11, opset_import: ["": {opset}]>'
    return parse(f"{head}\nmain ({declared}) => ({result} y) {{ {body} }}")


def assert_split_equals_kernel(
    model: ir.Model, kernel: ir.Model, feeds: dict[str, Any], tolerance: float
) -> None:
    """Splitting `model` gives what ONNX Runtime's kernel gives for `kernel`, whose mask "m" is written out."""
    full = feeds | {"m": np.broadcast_to(feeds["m"], shape_of(kernel, "m"))} if "m" in feeds else feeds
    expected = run(kernel, full)
    assert len(legalize(model, Accepts(attention=frozenset()))) == 1
    assert "Attention" not in operators(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for wanted, got in zip(expected, run(model, feeds), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=tolerance)


def shape_of(model: ir.Model, name: str) -> tuple[int, ...]:
    (value,) = (item for item in model.graph.inputs if item.name == name)
    assert value.shape is not None
    return tuple(value.shape.numpy())


MASKS: dict[str, Callable[[int, int, int, int], tuple[str, tuple[int, ...]]]] = {
    "[N,M]": lambda B, H, N, M: (f"[{N},{M}]", (N, M)),
    "[H,N,M]": lambda B, H, N, M: (f"[{H},{N},{M}]", (H, N, M)),
    "[1,M]": lambda B, H, N, M: (f"[1,{M}]", (1, M)),
    "[M]": lambda B, H, N, M: (f"[{M}]", (M,)),
    "[B,1,1,M]": lambda B, H, N, M: (f"[B,1,1,{M}]", (B, 1, 1, M)),
    "[B,1,N,M]": lambda B, H, N, M: (f"[B,1,{N},{M}]", (B, 1, N, M)),
    "[B,H,N,M]": lambda B, H, N, M: (f"[B,{H},{N},{M}]", (B, H, N, M)),
}


@given(data=st.data())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_attention_written_out_equals_the_kernel(data: st.DataObject) -> None:
    draw = data.draw
    B, N, D = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.sampled_from([1, 4, 9]))
    groups, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    H = groups * repeat
    M = draw(st.sampled_from([N, N + 2, 1]))
    width = draw(st.sampled_from([D, D + 3]))
    half = draw(st.booleans())
    flat = draw(st.booleans())
    causal = draw(st.booleans())
    kind, dtype = ("float16", np.float16) if half else ("float", np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = {"q": (B, H, N, D), "k": (B, groups, M, D), "v": (B, groups, M, width)}
    if flat:
        shapes = {name: (b, n, h * d) for name, (b, h, n, d) in shapes.items()}
    feeds: dict[str, Any] = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    inputs = {name: f"{kind}[B,{','.join(map(str, shape[1:]))}]" for name, shape in shapes.items()}
    attributes = [f"is_causal = {int(causal)}"]
    if flat:
        attributes += [f"q_num_heads = {H}", f"kv_num_heads = {groups}"]
    if draw(st.booleans()):
        attributes.append("scale = 0.3")
    if draw(st.booleans()):
        attributes.append("softcap = 1.5")
    if draw(st.booleans()):
        attributes.append("softmax_precision = 1")
    if draw(st.booleans()):
        text, shape = MASKS[draw(st.sampled_from(sorted(MASKS)))](B, H, N, M)
        allowed = rng.random(shape) < draw(st.sampled_from([0.2, 0.8]))
        if draw(st.booleans()):
            inputs["m"], feeds["m"] = f"bool{text}", allowed
        else:
            bias = rng.standard_normal(shape).astype(dtype)
            inputs["m"], feeds["m"] = f"{kind}{text}", np.where(allowed, bias, dtype(-np.inf))
    options = f"<{', '.join(attributes)}>", draw(st.sampled_from([23, 24]))
    # The kernel takes no mask that broadcasts along the queries.
    whole = {"m": f"{inputs['m'].split('[')[0]}[{B},{H},{N},{M}]"} if "m" in inputs else {}
    kernel = attention(inputs | whole, *options)
    assert_split_equals_kernel(attention(inputs, *options), kernel, feeds, 4e-3 if half else 2e-6)


def test_a_row_whose_keys_are_all_masked_gives_zeros() -> None:
    inputs = dict.fromkeys("qkv", "float[B,2,3,4]") | {"m": "bool[3,3]"}
    rng = np.random.default_rng(1)
    feeds: dict[str, Any] = {name: rng.standard_normal((2, 2, 3, 4), np.float32) for name in "qkv"}
    feeds["m"] = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    model = attention(inputs)
    assert_split_equals_kernel(model, attention(inputs), feeds, 1e-6)
    np.testing.assert_array_equal(run(model, feeds)[0][:, :, 1], 0)


def test_a_constant_mask_with_a_key_in_every_row_needs_no_guard() -> None:
    text = """<ir_version: 11, opset_import: ["": 23]>
    main (float[B,2,2,4] q) => (float[B,2,2,4] y)
    <bool[2,2] m = {1, 0, 1, 1}> { y = Attention (q, q, q, m) }"""
    model = parse(text)
    legalize(model, Accepts(attention=frozenset()))
    assert operators(model).count("Where") == 1
    assert "ReduceMax" not in operators(model)


@pytest.mark.parametrize(
    ("extra", "call", "attributes", "opset", "what"),
    [
        ({"m": "bool[4,3]"}, "q, k, v, m", "", 24, "a mask shorter than the keys"),
        ({"n": "int64[B]"}, "q, k, v, , , , n", "", 24, "nonpad_kv_seqlen"),
        ({}, "q, k, v", "<left_window_size = 2>", 25, "a sliding window"),
        ({}, "q, k, v", "<scale = -1.0>", 23, "the scale -1.0"),
    ],
)
def test_forms_without_a_counterpart_are_refused_by_name(
    extra: dict[str, str], call: str, attributes: str, opset: int, what: str
) -> None:
    model = attention(dict.fromkeys("qkv", "float[B,2,4,8]") | extra, attributes, opset, call)
    model.graph.node(0).name = "block.3/attention"
    with pytest.raises(UnsupportedError, match=rf"^Attention node 'block\.3/attention' (uses|has) {what}"):
        legalize(model, Accepts(attention=frozenset()))


def test_unknown_shapes_are_refused_with_the_remedy() -> None:
    model = attention(dict.fromkeys("qkv", "float[B,N,C]"), "<q_num_heads = 2, kv_num_heads = 2>")
    with pytest.raises(UnsupportedError, match=r"node 'y': the head width cannot be told .* --shape"):
        lower(model, target="rtx-sm89")


def test_a_cache_is_refused_by_name() -> None:
    text = """<ir_version: 11, opset_import: ["": 23]>
    main (float[B,2,1,8] q, float[B,2,3,8] pk, float[B,2,3,8] pv)
      => (float[B,2,1,8] y, float[B,2,4,8] nk, float[B,2,4,8] nv)
    { y, nk, nv = Attention (q, q, q, , pk, pv) }"""
    with pytest.raises(UnsupportedError, match="Attention node 'y' uses past keys and values"):
        lower(parse(text), target="rtx-sm89")


def test_attention_inside_a_function_is_reached() -> None:
    text = """<ir_version: 11, opset_import: ["": 23, "own": 1]>
    main (float[B,5,8] x) => (float[B,5,8] y) { h = own.Block (x)
      y = own.Block (h) }
    <domain: "own", opset_import: ["": 23]>
    Block (a) => (b) {
      c = Attention <q_num_heads = 2, kv_num_heads = 2> (a, a, a)
      b = Add (a, c)
    }"""
    model = parse(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)}
    before = run(model, feeds)[0]
    changes = lower(model, target="rtx-sm89")
    assert [change.action for change in changes.changes] == ["inlined"] * 2 + [
        "split into MatMul, Softmax and MatMul"
    ] * 2
    np.testing.assert_allclose(run(changes.model, feeds)[0], before, rtol=0, atol=1e-6)


def test_a_mask_shared_by_the_queries_is_split_for_onnx_runtime_only() -> None:
    model = attention(dict.fromkeys("qkv", "float16[B,4,7,16]") | {"m": "bool[B,1,1,7]"})
    assert lower(model, target="rtx-sm89").changes == ()
    (change,) = lower(model, target="ort-cpu").changes
    assert "one mask row for all queries" in change.reason


def test_half_precision_attention_stays_fused_where_the_target_has_it() -> None:
    kinds = dict.fromkeys("qkv", "float16[B,4,1,64]")
    assert lower(attention(kinds), target="rtx-sm89").changes == ()
    few = dict.fromkeys("qkv", "float16[B,3,1,64]")
    (change,) = lower(attention(few), target="rtx-sm89").changes
    assert "4 heads or more, this has 3" in change.reason
    narrow = dict.fromkeys("qkv", "float16[B,4,7,8]")
    (change,) = lower(attention(narrow), target="rtx-sm89").changes
    assert "9 to 256, this is 8" in change.reason
