"""M3 and TokenFLEX against torch's pooling, MQT against torch's attention and the rule that its first outputs stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.methods.vision_language.mqt import resized

torch = pytest.importorskip("torch")
BACKENDS = ("numpy", "onnxruntime")


def pictures(rows: int, columns: int, protect: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((2, protect + rows * columns, 8)).astype(np.float32)
    return {"x": x, "grid": (rows, columns)}


def pooled(x: Any, rows: int, columns: int, pool: Any) -> Any:
    grid = torch.from_numpy(x.reshape(len(x), rows, columns, -1)).permute(0, 3, 1, 2)
    return pool(grid).flatten(2).transpose(1, 2).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("rows", "columns", "side"), [(12, 12, 3), (12, 12, 12), (6, 9, 3), (7, 10, 3)])
def test_m3_is_average_pooling(rows: int, columns: int, side: int, protect: int, backend: str) -> None:
    tensors = pictures(rows, columns, protect)
    x = tensors["x"][:, protect:]
    wanted = pooled(x, rows, columns, torch.nn.AvgPool2d(side))
    options: dict[str, Any] = {"keep": protect + wanted.shape[1], "protect": protect, "backend": backend}
    found = apply_method("m3", tensors, **options)
    np.testing.assert_allclose(found["tokens"][:, protect:], wanted, atol=1e-6)
    covered = (rows // side) * (columns // side) * side * side
    assert found["size"].sum(axis=1).tolist() == [[protect + covered]] * 2
    assert (found["assign"] < 0).sum() == 2 * (rows * columns - covered)
    assert (np.diff(found["index"]) > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(12, 12, (8, 8)), (6, 9, (4, 6)), (7, 7, (3, 3)), (5, 8, (5, 7))]
)
def test_tokenflex_is_adaptive_pooling(
    rows: int, columns: int, shape: tuple[int, int], protect: int, backend: str
) -> None:
    tensors = pictures(rows, columns, protect)
    wanted = pooled(tensors["x"][:, protect:], rows, columns, torch.nn.AdaptiveAvgPool2d(shape))
    keep = protect + shape[0] * shape[1]
    found = apply_method("tokenflex", tensors, keep=keep, protect=protect, backend=backend)
    np.testing.assert_allclose(found["tokens"][:, protect:], wanted, atol=1e-6)
    assert found["size"].sum(axis=1).tolist() == [[protect + rows * columns]] * 2


def test_counts_that_are_no_grid_are_refused() -> None:
    with pytest.raises(PlanError, match="12 x 12 grid, and none leave 100 of 144 tokens; 16 or 36 can stay"):
        apply_method("m3", pictures(12, 12, 0), keep=100, protect=0)
    with pytest.raises(PlanError, match="53 tokens are none of at most 12 x 12 cells; 54 or 55 of 144"):
        apply_method("tokenflex", pictures(12, 12, 0), keep=53, protect=0)
    clip = pictures(12, 12, 0) | {"grid": (4, 6, 6)}
    with pytest.raises(PlanError, match="in each of 4 frames, so 50 of 144 cannot stay; 48 or 52 can"):
        apply_method("tokenflex", clip, keep=50, protect=0)


def test_tables_are_resized_as_torch_does() -> None:
    for source, target in ((6, 9), (8, 8), (16, 24), (9, 5)):
        rows = torch.eye(source, dtype=torch.float64)[None, None]
        wanted = torch.nn.functional.interpolate(rows, (target, source), mode="bicubic", align_corners=False)
        np.testing.assert_allclose(resized(source, target), wanted[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mqt_reads_as_attention_does_and_its_first_outputs_stay(backend: str) -> None:
    weights = given.weights(methods.get("mqt"), 36, 9, 0)
    tensors = {"x": given.arrays(36, 2, 0)["x"], "grid": (6, 6)}
    options: dict[str, Any] = {"protect": 0, "weights": weights, "heads": 2, "backend": backend}
    many, few = (apply_method("mqt", tensors, keep=keep, **options)["tokens"] for keep in (30, 5))
    np.testing.assert_allclose(many[:, :5], few, atol=1e-6)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    attend = torch.nn.MultiheadAttention(given.C, 2, batch_first=True)
    attend.load_state_dict(
        {name.removeprefix("attn."): value for name, value in state.items() if name.startswith("attn.")}
    )

    def norm(part: str, rows: Any) -> Any:
        own = (state[f"ln_{part}.{kind}"] for kind in ("weight", "bias"))
        return torch.nn.functional.layer_norm(rows, (given.C,), *own, eps=1e-6)

    query = norm("q", state["query"][:5] + state["pos_embed"][:5])
    keys, values = norm("k", state["pos_embed"]), norm("v", torch.from_numpy(tensors["x"]))
    with torch.no_grad():
        read, _ = attend(query.expand(2, -1, -1), keys.expand(2, -1, -1), values)
    np.testing.assert_allclose(few, (read @ state["proj"]).numpy(), rtol=1e-4, atol=1e-5)


def test_mqt_says_what_does_not_fit() -> None:
    weights = given.weights(methods.get("mqt"), 36, 9, 0)
    x = given.arrays(49, 1, 0)["x"]
    with pytest.raises(PlanError, match="have 36 queries, so 40 tokens cannot stay"):
        apply_method("mqt", {"x": x}, keep=40, protect=0, weights=weights)
    with pytest.raises(MethodError, match="channels in 5 heads"):
        apply_method("mqt", {"x": x}, keep=4, protect=0, weights=weights, heads=5)
    wider = weights | {"proj": np.ones((given.C, 2 * given.C), np.float32)}
    with pytest.raises(MethodError, match="no protected token can stand in front"):
        apply_method("mqt", {"x": x[:, :37]}, keep=5, protect=1, weights=wider)
