"""Exact on repeats: merging tokens that are equal loses nothing, whatever reads the tokens afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import zoo
from tests.passes.helpers.repeats import (
    ROTARY,
    arranged,
    counts,
    inputs,
    masked,
    without_positions,
)
from tests.passes.helpers.running import (
    POSITIVE,
    Variant,
    close,
    distance,
    dynamo,
    exported,
    params,
    run,
    session,
)
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import method_models

NAMES = [name for name in POSITIVE if zoo.entry(name).zero is not None or name in ROTARY]
DEFAULT = [
    *exported(NAMES),
    dynamo("hf_bert", 23),
    dynamo("hf_siglip", 23),
    Variant("hf_bert_eager", fused="transformers"),
]
MATRIX = [dynamo(name, opset) for opset in (18, 20, 23) for name in NAMES]
# The difference allowed, relative to the largest output: fp32 sums in another order, four blocks deep.
TOLERANCE = 1e-5


def budget(variant: Variant, labels: np.ndarray, padding: tuple[int, ...] = ()) -> Budget:
    entry = zoo.entry(variant.name)
    plan = counts(masked(variant.name, labels, padding), entry.protected, entry.blocks)
    assert plan[-1] < entry.tokens
    return Budget.tokens(plan)


def shown(outputs: list[np.ndarray], given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs at visible words: hidden ones merge with hidden ones first, whatever they hold."""
    mask = given.get("attention_mask")
    if mask is None:
        return outputs
    return [output * mask[:, :, None] if output.ndim == 3 else output for output in outputs]


@pytest.mark.parametrize("variant", params(DEFAULT, MATRIX))
def test_merging_repeats_changes_no_output(variant: Variant) -> None:
    entry = zoo.entry(variant.name)
    labels = arranged(3, entry.tokens - entry.protected, 3, seed=4)
    path = without_positions(variant)
    padding = (0, 5, 10)
    plan = budget(variant, labels, padding)
    result = reduce(path, method="tome", budget=plan, shape=variant.shape)
    assert result.plan.counts()[-1] <= entry.protected + 0.6 * (entry.tokens - entry.protected)
    given = inputs(variant.name, labels, padding=padding)
    close(shown(run(result.model, given), given), shown(run(path, given), given), TOLERANCE)


@pytest.mark.parametrize(
    "name", ["timm_vit", "timm_vit_avg_no_class", "timm_vit_map", "dense_taps", "hf_beit"]
)
def test_it_holds_behind_the_block_too(name: str) -> None:
    variant = Variant(name)
    entry = zoo.entry(name)
    labels = arranged(2, entry.tokens - entry.protected, 2, seed=9)
    path = without_positions(variant)
    result = reduce(path, method="tome", budget=budget(variant, labels), site="after-block")
    given = inputs(name, labels)
    close(run(result.model, given), run(path, given), TOLERANCE)


@pytest.mark.parametrize("name", ["timm_vit", "timm_vit_map"])
def test_without_sizes_in_attention_it_would_not(name: str) -> None:
    variant = Variant(name)
    entry = zoo.entry(name)
    labels = arranged(2, entry.tokens - entry.protected, 3, seed=4)
    path = without_positions(variant)
    result = reduce(path, method="tome", budget=budget(variant, labels), proportional_attention=False)
    given = inputs(name, labels)
    assert distance(run(result.model, given), run(path, given)) > 1e-2


UNPRUNED = {"ltmp": {"r_prune": 0}, "diffrate": {"prune_kept": "65"}}
"""Options by which methods that also drop tokens merge all that leave."""


@pytest.mark.parametrize("name", [name for name in methods.at_blocks() if methods.get(name).merges])
def test_equal_patches_merge_without_loss_by_every_method(name: str) -> None:
    """All patches equal, so whichever are merged: sizes alone keep what attention and pooling make of them."""
    path = without_positions(Variant("timm_vit_patch8"))
    prepared = prepare(path)
    for counts_left in method_models.budgets(prepared):
        options = method_models.given(methods.get(name), prepared, counts_left) | UNPRUNED.get(name, {})
        plan = Budget.tokens(counts_left, method_models.SITES[: len(counts_left)])
        try:
            result = reduce(path, method=name, budget=plan, options=options, proportional_attention=True)
        except (MethodError, PlanError):
            continue
        break
    given = inputs("timm_vit_patch8", np.zeros((2, 64), int)) | {
        "segments": np.arange(130).reshape(2, 65) % 20
    }
    close(run(result.model, given), run(path, given), TOLERANCE)


@pytest.mark.parametrize("padding", [(0, 0), (3, 12), (20, 31)], ids=str)
def test_padding_takes_no_part(padding: tuple[int, ...]) -> None:
    """Whatever share of the repeats is hidden by the mask, and where real and hidden words are equal."""
    variant = Variant("hf_bert")
    labels = arranged(2, 31, 4, seed=2)
    path = without_positions(variant)
    result = reduce(path, method="tome", budget=budget(variant, labels, padding))
    given = inputs("hf_bert", labels, padding=padding)
    close(shown(run(result.model, given), given), shown(run(path, given), given), TOLERANCE)


EVERY_KIND = ("timm_vit_patch8", "dense_dinov2_patch8", "hf_siglip", "hf_bert_classify")


@pytest.mark.parametrize("name", EVERY_KIND)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.integers(1, 7),
    rows=st.integers(1, 3),
    share=st.sampled_from([0.3, 0.7, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_any_arrangement_of_repeats(name: str, kinds: int, rows: int, share: float, seed: int) -> None:
    variant = Variant(name)
    entry = zoo.entry(name)
    labels = arranged(rows, entry.tokens - entry.protected, kinds, seed)
    plan = counts(labels, entry.protected, entry.blocks, share)
    path = without_positions(variant)
    result = reduce(canonical(name), method="tome", budget=Budget.tokens(plan), allow_noop=True)
    given = inputs(name, labels, seed)
    close(run(result.model, given), run(ORIGINALS.setdefault(name, session(path)), given), TOLERANCE)


ORIGINALS: dict[str, object] = {}
CANONICAL: dict[str, object] = {}


def canonical(name: str) -> object:
    if name not in CANONICAL:
        CANONICAL[name] = prepare(without_positions(Variant(name))).model
    return CANONICAL[name]
