"""What the tests of scored pruning share: random weights, the tokens a score keeps, and what must hold of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tests.passes.methods.helpers.loops import BACKENDS, CLOSE
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods

C, D, H = 8, 5, 2
"""Channels that DynamicViT's predictor can halve twice."""

ODD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def arrays(tokens: int, batch: int, seed: int = 0, *, sized: bool = True) -> dict[str, Any]:
    """Seeded tensors in float64: those of the loops, wider tokens, and values."""
    rng = np.random.default_rng([seed, tokens, batch, 1])
    given = loops.arrays(tokens, batch, seed, sized=sized)
    del given["normed"]
    return given | {
        "x": rng.standard_normal((batch, tokens, C)),
        "values": rng.standard_normal((batch, H, tokens, D)),
    }


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Random tensors of these shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def best(score: Any, keep: int, protect: int) -> list[int]:
    """Protected positions and the best others, ascending; the smaller position among equals."""
    free = sorted(range(protect, len(score)), key=lambda i: (-score[i], i))
    return [*range(protect), *sorted(free[: keep - protect])]


def agrees(found: Mapping[str, Any], given: Mapping[str, Any], image: int, kept: list[int]) -> None:
    """These positions were kept, in this order, and everything else dropped."""
    assert found["index"][image].tolist() == kept
    where = {place: slot for slot, place in enumerate(kept)}
    assert found["assign"][image].tolist() == [where.get(i, -1) for i in range(given["x"].shape[1])]
    np.testing.assert_allclose(found["tokens"][image], given["x"][image, kept], rtol=1e-6)
    size = given["size"][image, kept] if "size" in given else np.ones((len(kept), 1))
    np.testing.assert_allclose(found["size"][image], size, rtol=1e-6)


def close(found: Any, wanted: Any, backend: str) -> None:
    np.testing.assert_allclose(found, wanted, rtol=CLOSE[backend] * 10, atol=CLOSE[backend])


def gelu(value: float) -> float:
    return 0.5 * value * (1 + math.erf(value / math.sqrt(2)))


def gated(weights: Mapping[str, Any], rows: Any) -> Any:
    """Linear, GELU, linear of rows [...,C], to one number each."""
    hidden = np.vectorize(gelu)(rows @ weights["gate.0.weight"].T + weights["gate.0.bias"])
    return (hidden @ weights["gate.2.weight"].T + weights["gate.2.bias"])[..., 0]


def linear(row: Any, weight: Any, bias: Any) -> list[float]:
    """One linear layer, output by output."""
    return [
        float(b) + sum(float(w) * float(v) for w, v in zip(out, row, strict=True))
        for out, b in zip(weight, bias, strict=True)
    ]


def ties(name: str, given: Mapping[str, Any], keep: int, **options: Any) -> None:
    """Images whose tokens are all alike keep their first ones, on both backends."""
    alike = dict(given)
    for key in ("x", "keys", "values"):
        alike[key] = np.repeat(given[key][..., :1, :], given[key].shape[-2], axis=-2)
    tokens = given["x"].shape[1]
    alike["attn"] = np.full_like(given["attn"], 1 / tokens)
    for backend in BACKENDS:
        found = apply_method(name, alike, keep=keep, backend=backend, **options)
        assert found["index"].tolist() == [[*range(keep)]] * len(given["x"])


def stays_in_range(name: str, odd: float, tokens: int = 12, keep: int = 7, **options: Any) -> None:
    """Numbers that are none, in one token or in all: indices exist, protected tokens lead, both backends choose alike."""
    for where in (5, slice(None)):
        given = arrays(tokens, 2)
        given["x"][:, where] = odd
        for key in ("keys", "values"):
            given[key][:, :, where] = odd
        given["attn"][:, :, :, where] = odd
        found = [apply_method(name, given, keep=keep, backend=backend, **options) for backend in BACKENDS]
        for result in found:
            assert result["tokens"].shape[1] == keep
            assert (result["index"][:, 0] == 0).all()
            assert ((result["index"] >= 0) & (result["index"] < tokens)).all()
            assert ((result["assign"] >= -1) & (result["assign"] < keep)).all()
        np.testing.assert_array_equal(found[0]["index"], found[1]["index"])


def refuses_weights(name: str, good: Mapping[str, Any], wrong: str, tmp_path: Path) -> None:
    """No weights, a missing tensor, another rank, another shape and a broken file: each says what is wanted."""
    given = {"x": arrays(9, 1)["x"]}
    wanted = r"--set weights=FILE \(.npz or .safetensors\) with the tensors "
    with pytest.raises(MethodError, match=f"method '{name}' needs trained weights: it takes {wanted}"):
        apply_method(name, given, keep=5)
    for tensor in methods.get(name).needs:
        short = {key: value for key, value in good.items() if key != tensor}
        with pytest.raises(MethodError, match=f"lack '{tensor}'.*{wanted}.*{tensor}"):
            apply_method(name, given, keep=5, weights=short)
    with pytest.raises(MethodError, match=f"tensor '{wrong}' of method '{name}' must be floating-point"):
        apply_method(name, given, keep=5, weights={**good, wrong: np.zeros((1, 1, 1, 1))})
    path = tmp_path / "weights.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(MethodError, match=f"cannot read the weights .*weights.npz.*{wanted}"):
        apply_method(name, given, keep=5, weights=str(path))
    np.savez(path, **good)
    from_file = apply_method(name, given, keep=5, weights=str(path))
    np.testing.assert_array_equal(
        from_file["index"], apply_method(name, given, keep=5, weights=good)["index"]
    )
