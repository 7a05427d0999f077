"""GroupQueryAttention without a past, opened, against ONNX Runtime's own kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.helpers.running import run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.graph.canonicalize import Canonicalize

BATCH, TOKENS, HEADS, SHARED, WIDTH = 2, 6, 4, 2, 16
PAST = ["past_key", "past_value"]


def model(
    past: int | str = 0, *, packed: bool = False, places: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """One node with a cache, whose prompts' lengths come as an input."""
    generator = np.random.default_rng(0)
    angles = generator.uniform(-3, 3, (32, WIDTH // 2)).astype(np.float32)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    sizes = {"q": HEADS + 2 * SHARED} if packed else {"q": HEADS, "k": SHARED, "v": SHARED}
    floats, int32 = TensorProto.FLOAT, TensorProto.INT32
    value = helper.make_tensor_value_info
    inputs = [value(name, floats, [BATCH, TOKENS, count * WIDTH]) for name, count in sizes.items()]
    inputs += [value(name, floats, [BATCH, SHARED, past, WIDTH]) for name in PAST]
    inputs += [value("lengths", int32, [BATCH])]
    inputs += [value("places", TensorProto.INT64, [BATCH, TOKENS])] if places else []
    rotary = ["cos", "sin"] if attributes.get("do_rotary") else ["", ""]
    node = helper.make_node(
        "GroupQueryAttention",
        [
            "q",
            *(["", ""] if packed else ["k", "v"]),
            *PAST,
            "lengths",
            "total",
            *rotary,
            *(["places"] if places else []),
        ],
        ["y", "key", "value"],
        name="attention",
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=SHARED,
        **attributes,
    )
    outputs = [value("y", floats, [BATCH, TOKENS, HEADS * WIDTH])]
    outputs += [value(name, floats, [BATCH, SHARED, None, WIDTH]) for name in ("key", "value")]
    held = {"total": np.array(TOKENS, np.int32), **(tables if rotary[0] else {})}
    graph = helper.make_graph(
        [node],
        "grouped",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets)


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    made = {}
    for value in proto.graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        made[value.name] = generator.standard_normal(dims).astype(np.float32)
    made["lengths"] = np.array([TOKENS - 1, TOKENS - 3], np.int32)
    if "places" in made:
        # On a CPU ONNX Runtime 1.31 reads the very first alone, and counts on from it for all prompts.
        made["places"] = np.tile(np.arange(TOKENS) + 4, (BATCH, 1))
    return made


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.2},
    "packed": {"packed": True},
    "turned": {"do_rotary": 1},
    "packed and turned": {"packed": True, "do_rotary": 1},
    "turned pair by pair": {"do_rotary": 1, "rotary_interleaved": 1},
    "turned at places": {"do_rotary": 1, "places": True},
    "in a window": {"local_window_size": 2},
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_the_kernel_gives(form: str) -> None:
    proto = model(**FORMS[form])
    opened = Canonicalize()(ir.from_proto(proto))
    assert "GroupQueryAttention" not in {node.op_type for node in opened.graph}
    given = feeds(proto)
    for mine, theirs in zip(run(opened, given), run(proto, given), strict=True):
        assert mine.shape == theirs.shape
        for prompt, last in enumerate(given["lengths"]):
            # What stands behind the end of a prompt is nobody's.
            axis = mine.ndim - 2
            each = (np.take(array[prompt], range(last + 1), axis=axis - 1) for array in (mine, theirs))
            np.testing.assert_allclose(*each, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"past": 3}, r"attention.*has a past, 'past_key', .*--shape past_key=1x2x0xD"),
        ({"softcap": 3.0}, "softcap is not supported"),
        ({"smooth_softmax": 1}, "smooth_softmax is not supported"),
        ({"qk_output": 1}, "qk_output is not supported"),
    ],
)
def test_what_is_not_opened_is_refused_by_name(form: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Canonicalize()(ir.from_proto(model(**form)))
