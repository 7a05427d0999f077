"""DTEM: ToMe on a learned linear map of the normalised input, against loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes.planning.plan import Budget

RNG = np.random.default_rng(3)
WEIGHTS = {
    "weight": RNG.standard_normal((4, loops.C)).astype(np.float32),
    "bias": RNG.standard_normal(4).astype(np.float32),
}
SETTINGS = [*loops.settings("dtem", weights=WEIGHTS)]


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), SETTINGS)
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        metric = [
            [float(np.sum(row * token)) + shift for row, shift in zip(*WEIGHTS.values(), strict=True)]
            for token in given["normed"][image]
        ]
        groups = loops.tome(np.array(metric), removed, protect)
        size = given["size"][image, :, 0]
        return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

    loops.check("dtem", given, wanted, keep=tokens - removed, protect=protect, weights=WEIGHTS)


def test_a_block_may_have_its_own_map() -> None:
    given = loops.arrays(21, 1)
    own = {f"block2.{name}": -array[::-1] + 1 for name, array in WEIGHTS.items()}
    found = [
        apply_method("dtem", given, keep=14, block=block, weights=WEIGHTS | own)["assign"].tolist()
        for block in (1, 2, 3)
    ]
    assert found[0] == found[2] != found[1]


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("dtem", 25, weights=WEIGHTS)
    loops.loses_nothing("dtem", 25, weights=WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, r"'dtem' needs trained weights: it takes --set weights=FILE .* weight \[M,C\], bias \[M\]"),
        ({"weight": WEIGHTS["weight"]}, "lack 'bias'"),
        ({**WEIGHTS, "weight": np.zeros((4, 9), np.float32)}, r"must have shape \[4, 6\] here, got \[4, 9\]"),
        ({**WEIGHTS, "bias": np.zeros(3, np.float32)}, r"'bias' .* must have shape \[4\] here, got \[3\]"),
    ],
)
def test_missing_weights_are_named(weights: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("dtem", loops.arrays(9, 1), keep=8, weights=weights)


def test_a_missing_input_is_named() -> None:
    given = {"x": loops.arrays(9, 1)["x"]}
    with pytest.raises(MethodError, match=r"needs the tensor normed, with shapes normed \[B,N,C\]"):
        apply_method("dtem", given, keep=8, weights=WEIGHTS)


GEMM = tiny.ATTENTION.replace(
    "  b{n}_k = MatMul (b{n}_in, wk)\n",
    "  b{n}_rows = Reshape (b{n}_in, rows)\n  b{n}_kr = Gemm (b{n}_rows, wk)\n  b{n}_k = Reshape (b{n}_kr, join)\n",
)
FORMS = {
    "by-head": (tiny.ATTENTION, 2),
    "one-head": (tiny.FLAT_ATTENTION, 1),
    "folded": (tiny.FOLDED_ATTENTION, 2),
    "rows": (GEMM.replace("(b{n}_kr, join)", "(b{n}_kr, back)"), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_in_a_model_it_reads_what_the_projections_read(form: str, tmp_path: Path) -> None:
    """A map equal to the mean key projection makes it ToMe, bit for bit as far as the choices go."""
    attention, heads = FORMS[form]
    model = tiny.model(attention=attention)
    for name, array in (("rows", [-1, tiny.WIDTH]), ("back", [-1, tiny.TOKENS, tiny.WIDTH])):
        if form == "rows":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
    key = tiny.weights()["wk"].reshape(tiny.WIDTH, heads, tiny.WIDTH // heads).mean(1).T
    file = tmp_path / "weights.npz"
    np.savez(file, weight=key, bias=np.zeros(len(key), np.float32))
    results = []
    for method, options in (("tome", {}), ("dtem", {"weights": str(file)})):
        made = tokenrt.reduce(ir.from_proto(model), method=method, budget=Budget.remove(1), options=options)
        session = onnxruntime.InferenceSession(
            ir.to_proto(made.model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, tiny.picture(5))[0])
    np.testing.assert_allclose(*results, rtol=1e-5)
