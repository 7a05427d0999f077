"""TokenScore: the function body in ONNX Runtime against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import inliner, shape_inference

from tests.helpers.tolerance import within_twice
from tests.passes.ops.helpers.runner import OPSETS, expect, model, run

NONE = np.zeros((1, 1, 1, 1), np.float32)


def case(batch: int, tokens: int, kind: type = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens)
    return [rng.standard_normal((batch, 3, tokens, 8)).astype(kind) for _ in range(2)]


def plain(queries: np.ndarray, keys: np.ndarray, bias: np.ndarray, scale: float, rows: slice) -> np.ndarray:
    logits = (queries[:, :, rows] * np.float32(scale)) @ keys.transpose(0, 1, 3, 2) + bias
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return (weight / weight.sum(-1, keepdims=True)).mean((1, 2))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("rows", [(0, 1), (32, 33), (0, 33)], ids=["class", "last", "all"])
def test_body_is_as_exact_as_plain_float32(opset: int, rows: tuple[int, int]) -> None:
    queries, keys = case(3, 33)
    bias = np.log(np.random.default_rng(0).integers(1, 5, (3, 1, 1, 33))).astype(np.float32)
    for offset in (NONE, bias):
        attributes = {"scale": 8**-0.5, "first_row": rows[0], "end_row": rows[1]}
        (found,) = run("TokenScore", [queries, keys, offset], attributes, opset)
        (wanted,) = expect("TokenScore", [queries, keys, offset], attributes)
        within_twice(found, wanted, plain(queries, keys, offset, 8**-0.5, slice(*rows)))
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_masked_tokens_get_nothing() -> None:
    queries, keys = case(1, 9)
    bias = np.zeros((1, 1, 1, 9), np.float32)
    bias[..., 4:] = -np.inf
    attributes = {"scale": 1.0, "first_row": 0, "end_row": 9}
    (found,) = run("TokenScore", [queries, keys, bias], attributes)
    assert (found[:, 4:] == 0).all()
    np.testing.assert_allclose(found, expect("TokenScore", [queries, keys, bias], attributes)[0], rtol=1e-6)


def test_half_precision_queries_are_scored_in_float32() -> None:
    queries, keys = case(2, 33, np.float16)
    attributes = {"scale": 8**-0.5, "first_row": 0, "end_row": 1}
    (found,) = run("TokenScore", [queries, keys, NONE], attributes)
    assert found.dtype == np.float32
    wide = [queries.astype(np.float32), keys.astype(np.float32), NONE]
    within_twice(found, expect("TokenScore", wide, attributes)[0], plain(*wide, 8**-0.5, slice(0, 1)))


def test_one_row_never_makes_a_square_matrix() -> None:
    queries, keys = case(2, 33)
    one = model("TokenScore", [queries, keys, NONE], {"scale": 1.0, "first_row": 0, "end_row": 1})
    inferred = shape_inference.infer_shapes(inliner.inline_local_functions(one), data_prop=True)
    shapes = [
        [size.dim_value for size in value.type.tensor_type.shape.dim] for value in inferred.graph.value_info
    ]
    assert [0, 3, 1, 33] in shapes
    assert all(shape[-2:] != [33, 33] for shape in shapes)
