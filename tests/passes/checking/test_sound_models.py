"""Sound reductions of exported models hold in every property."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenrt
from tests.passes.helpers.running import Variant
from tokenrt.passes.checking.check import check
from tokenrt.passes.checking.verdict import HELD

SOUND = [
    (Variant("timm_vit", batch=3), "tome"),
    (Variant("hf_bert"), "tome"),
]
MORE = [
    (Variant("timm_vit_avg"), "dpcknn"),
    (Variant("timm_vit", dtype="fp16"), "tome"),
    (Variant("timm_vit"), "evit"),
    (Variant("hf_clip"), "slice"),
    (Variant("hf_videomae"), "kmedoids"),
    (Variant("post_norm"), "pitome"),
]


@pytest.mark.parametrize(
    ("variant", "method"),
    [pytest.param(*each, id="-".join(map(str, each))) for each in SOUND]
    + [pytest.param(*each, id="-".join(map(str, each)), marks=pytest.mark.slow) for each in MORE],
)
def test_sound_models_pass(variant: Variant, method: str, tmp_path: Path) -> None:
    reduced = tmp_path / "r.onnx"
    budget = tokenrt.Budget.remove(2)
    tokenrt.reduce(variant.path(), method=method, budget=budget, shape=variant.shape, output=reduced)
    report = check(variant.path(), reduced, samples=1)
    assert not report.reasons
    assert {each.name: each.state for each in report.properties if each.state != HELD} == {}
