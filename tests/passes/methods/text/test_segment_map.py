"""A map from outside in whole models: whatever the map leaves empty is as if it were not there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.helpers import text_encoder
from tests.passes.helpers.running import run, session
from tokenrt import Budget, check, reduce
from tokenrt.errors import PlanError
from tokenrt.perf.bench.plain_vit import PlainViT

N, K, AT = 12, 8, 0
SHAPE = {"input_ids": ("B", N)}
REAL = (12, 7)
"""Words of the two texts."""

MAP = np.array([[0, 1, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7], [0, 1, 1, 2, 3, 3, 4, -1, 6, -1, -1, 9]])
"""The first fills all outputs; the second leaves 5 to 7 empty, 6 has padding alone."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder.write(tmp_path_factory.mktemp("segments") / "encoder.onnx", 40)


def words(seed: int = 0) -> dict[str, Any]:
    """Ids and mask of two texts; the ids behind the second's end come from `seed`."""
    ids = np.random.default_rng(9).integers(4, 40, (2, N))
    ids[1, REAL[1] :] = np.random.default_rng(seed).integers(4, 40, N - REAL[1])
    return {"input_ids": ids, "attention_mask": (np.arange(N) < np.array(REAL)[:, None]).astype(np.int64)}


def by_hand(path: Path, ids: Any, groups: Any, weight: Any = None) -> Any:
    """The embedding [C] of a text without padding, in float64: means of groups, or weighted sums, behind the first attention."""
    w = {
        each.name: numpy_helper.to_array(each).astype(np.float64)
        for each in onnx.load(path).graph.initializer
    }

    def norm(x: Any) -> Any:
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)

    def attended(x: Any, n: int) -> Any:
        parts = (x @ w[f"{name}{n}"] for name in ("query", "key", "value"))
        heads = [part.reshape(len(x), text_encoder.HEADS, -1).transpose(1, 0, 2) for part in parts]
        scores = heads[0] @ heads[1].transpose(0, 2, 1) * heads[0].shape[2] ** -0.5
        weights = np.exp(scores - scores.max(2, keepdims=True))
        mixed = (weights / weights.sum(2, keepdims=True)) @ heads[2]
        return mixed.transpose(1, 0, 2).reshape(len(x), -1) @ w[f"output{n}"]

    def mlp(x: Any, n: int) -> Any:
        up = x @ w[f"wide{n}"]
        erf = np.vectorize(math.erf)
        return norm(x + (0.5 * up * (1 + erf(up / np.sqrt(2)))) @ w[f"narrow{n}"])

    x = norm(w["words"][ids] + w["positions"][: len(ids)])
    counts = np.ones(len(x))
    for n in range(text_encoder.LAYERS):
        x = x + attended(x, n)
        if n == AT:
            members = np.array([groups == slot for slot in range(K) if (groups == slot).any()], float)
            own = members if weight is None else members * weight
            x = own @ x / (members.sum(1, keepdims=True) if weight is None else 1)
            counts = members.sum(1)
        x = mlp(norm(x), n)
    return (counts[:, None] * x).sum(0) / counts.sum()


def reduced(path: Path, **options: Any) -> ir.Model:
    return reduce(
        path, method="segments", budget=Budget.tokens([K], [AT]), shape=SHAPE, options=options
    ).model


@pytest.mark.parametrize("combine", ["mean", "weighted"])
def test_a_map_in_a_model_is_the_map_by_hand(encoder: Path, combine: str) -> None:
    """Outputs that no word goes to, and those of padding alone, are as if they were not there, whatever ids padding has."""
    made = reduced(encoder, combine=combine)
    gained = {str(value.name): value for value in made.graph.inputs[2:]}
    assert [*gained] == ["segments", "importance"][: 1 + (combine == "weighted")]
    assert gained["segments"].dtype == ir.DataType.INT64
    weight = np.random.default_rng(4).uniform(0.5, 1.5, (2, N)).astype(np.float32)
    ready, more = session(made), {"segments": MAP} | ({"importance": weight} if len(gained) > 1 else {})
    (found,), (other,) = (run(ready, words(seed) | more) for seed in (0, 1))
    np.testing.assert_allclose(found, other, atol=1e-6)
    for row, real in enumerate(REAL):
        own = weight[row, :real] if combine == "weighted" else None
        wanted = by_hand(encoder, words()["input_ids"][row, :real], MAP[row, :real], own)
        np.testing.assert_allclose(found[row], wanted, atol=2e-6)


def test_a_map_of_every_word_to_itself_changes_nothing(encoder: Path) -> None:
    """With as many outputs as words, less the padding that both texts have."""
    given = words()
    given["attention_mask"][:, K:] = 0
    own = np.where(np.arange(N) < K, np.arange(N), -1)[None].repeat(2, 0)
    (found,) = run(session(reduced(encoder)), given | {"segments": own})
    (wanted,) = run(session(ir.load(encoder)), given)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    return PlainViT(width=32, heads=2, blocks=3, patch=8, image=32, classes=5).write(tmp_path / "tower.onnx")


def test_a_model_without_a_mask_hides_what_is_empty(tower: Path, tmp_path: Path) -> None:
    """Two files of 10 and of 14 tokens, the same map, which fills nine of each: the same answer. The class token is protected."""
    groups = np.random.default_rng(5).permuted(np.tile(np.arange(16) % 9, (2, 1)), axis=1)
    groups = np.concatenate([np.full((2, 1), -1), groups], axis=1)
    given = {"pixel_values": np.random.default_rng(6).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    answers = []
    for count in (10, 14):
        target = tmp_path / f"{count}.onnx"
        made = reduce(tower, method="segments", budget=Budget.tokens([count], [0]), output=target)
        assert check(tower, target).ok
        answers.append(run(session(made.model), given | {"segments": groups})[0])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    left_out = np.where(groups == 8, -1, groups)
    assert np.abs(run(session(made.model), given | {"segments": left_out})[0] - answers[1]).max() > 1e-3


def test_a_method_behind_a_map_takes_what_is_empty_for_padding(tower: Path) -> None:
    """`topk` keeps the nine that the map fills, of 14 and of 12 alike."""
    groups = np.concatenate([np.full((1, 1), -1), np.arange(16)[None] % 9], axis=1)
    given = {"pixel_values": np.random.default_rng(6).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    first = reduce(tower, method="segments", budget=Budget.tokens([14], [0])).plan
    second = reduce(tower, method="topk", budget=Budget.tokens([10], [1])).plan
    sites = (first.sites[0], replace(second.sites[0], method="topk"))
    both = reduce(tower, plan=replace(first, sites=sites))
    alone = reduce(tower, method="segments", budget=Budget.tokens([10], [0]))
    (found,), (wanted,) = (run(session(made.model), given | {"segments": groups}) for made in (both, alone))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_map_is_of_all_tokens(tower: Path) -> None:
    with pytest.raises(PlanError, match=r"block 1: segments reads the input segments \[B,N\] of all tokens"):
        reduce(tower, method="segments", budget=Budget.tokens([12, 9], [0, 1]))
