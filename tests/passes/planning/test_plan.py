"""Budgets become counts, as published; plans are TOML that survives a round trip and edits by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.running import Variant, attended, feeds, run
from tokenrt.errors import PlanError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.plan import Budget, Plan, PlannedSite
from tokenrt.passes.planning.resolve import resolve
from tokenrt.passes.reduce import reduce

PATIENT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def method(name: str, **options: object) -> Method:
    return methods.get(name).from_options(options)


def counts(budget: Budget, name: str, tokens: int, blocks: int, protect: int = 1) -> list[int]:
    """Tokens behind every block."""
    sites, _ = resolve(budget, method(name), tokens, protect, blocks, "after-attention")
    left, here = {site.block: site.tokens for site in sites}, tokens
    return [here := left.get(block, here) for block in range(blocks)]


def test_evit_on_deit_small_keeps_what_the_paper_keeps() -> None:
    """ceil(0.7 * (N - 1)) tokens, the class token and the fused one, at blocks 3, 6 and 9."""
    found = counts(Budget.keep(0.7, [3, 6, 9]), "evit", 197, 12)
    assert found == [197, 197, 197, 140, 140, 140, 100, 100, 100, 72, 72, 72]


def test_evit_without_fusion_and_topk_keep_one_less() -> None:
    sites, _ = resolve(Budget.keep(0.7, [3]), method("evit", fuse=False), 197, 1, 12, "after-attention")
    assert sites[0].tokens == 139
    assert counts(Budget.keep(0.7, [3]), "topk", 197, 12)[3] == 139


def test_tome_on_vit_large_removes_eight_a_block_until_half_is_left() -> None:
    found = counts(Budget.remove(8), "tome", 197, 24)
    assert found == [*range(189, 12, -8), 7]


def test_a_distillation_token_is_protected_too() -> None:
    """min(R, (N - 2) // 2) pairs, as for the published distilled models."""
    expected, here = [], 198
    for _ in range(12):
        here -= min(16, (here - 2) // 2)
        expected.append(here)
    assert counts(Budget.remove(16), "tome", 198, 12, protect=2) == expected


def test_a_note_says_where_less_could_leave() -> None:
    _, notes = resolve(Budget.remove(8), method("tome"), 197, 1, 24, "after-attention")
    assert notes == ("block 23: only 6 of 8 tokens can leave 13",)


def test_a_ratio_counts_the_unprotected_tokens_that_are_there_and_rounds_up() -> None:
    assert counts(Budget.keep(0.5, [0, 1]), "topk", 20, 2, protect=4) == [12, 8]
    assert counts(Budget.keep(0.5, [0]), "topk", 4, 1, protect=1) == [3]
    assert counts(Budget.keep(1, [0]), "topk", 20, 1) == [20]


def test_layers_may_come_in_any_order() -> None:
    assert counts(Budget.tokens([10, 5], [2, 0]), "topk", 20, 3) == counts(
        Budget.tokens([10, 5], [0, 2]), "topk", 20, 3
    )


@PATIENT
@given(
    tokens=st.integers(3, 300),
    protect=st.integers(0, 5),
    blocks=st.integers(1, 24),
    removed=st.integers(1, 60),
    name=st.sampled_from(["tome", "topk", "evit", "random", "slice"]),
)
def test_any_removal_leaves_legal_counts_or_is_refused(
    tokens: int, protect: int, blocks: int, removed: int, name: str
) -> None:
    chosen = method(name)
    protect = min(protect, tokens - 2)
    try:
        sites, notes = resolve(Budget.remove(removed), chosen, tokens, protect, blocks, "after-attention")
    except PlanError:
        return
    here = tokens
    for site in sites:
        assert chosen.fewest(here, protect) <= site.tokens < here
        assert here - site.tokens <= removed
        assert here - site.tokens == removed or any(f"block {site.block}:" in note for note in notes)
        here = site.tokens
    assert here > protect


sites = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(1, 999)), max_size=6).map(
    lambda found: tuple(
        PlannedSite(block, "after-block" if after else "after-attention", left)
        for block, after, left in sorted(found)
    )
)
plans = st.builds(
    Plan,
    method=st.sampled_from(["tome", "evit", "topk"]),
    tokens=st.integers(1, 5000),
    protect=st.integers(0, 9),
    blocks=st.integers(0, 99),
    sites=sites,
    proportional_attention=st.booleans(),
    options=st.dictionaries(
        st.text("abcdefgh_", min_size=1), st.one_of(st.booleans(), st.integers(0, 99), st.text()), max_size=3
    ),
    macs_before=st.integers(0, 2**62),
    macs_after=st.integers(0, 2**62),
)


@PATIENT
@given(plan=plans)
def test_a_plan_survives_being_written_and_read(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    plan.save(path)
    assert Plan.load(path) == plan


def test_a_plan_edited_by_hand_is_followed(tmp_path: Path) -> None:
    variant = Variant("timm_vit")
    path = tmp_path / "plan.toml"
    tokenrt.plan(variant.path(), method="topk", budget=Budget.remove(2)).save(path)
    lines = path.read_text().replace("tokens = 15", "tokens = 9").replace("tokens = 13", "tokens = 8")
    kept, _, _ = lines.partition("[[site]]\nblock = 2")
    path.write_text(kept)
    result = reduce(variant.path(), plan=path)
    assert result.plan.counts() == [17, 9, 8]
    assert attended(result.model, feeds("timm_vit"))[:4] == [17, 9, 8, 8]


def test_a_plan_says_the_same_as_its_budget() -> None:
    variant = Variant("timm_vit")
    plan = tokenrt.plan(variant.path(), method="tome", budget=Budget.remove(2))
    one = reduce(variant.path(), plan=plan)
    other = reduce(variant.path(), method="tome", budget=Budget.remove(2))
    assert one.plan == other.plan
    for a, b in zip(run(one.model, feeds("timm_vit")), run(other.model, feeds("timm_vit")), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("name", ["tome", "topk"])
@pytest.mark.parametrize("fraction", [0.6, 0.8, 0.95, 1.0])
def test_a_share_of_the_work_is_kept_and_no_more(name: str, fraction: float) -> None:
    """The next smaller removal would cost more than was asked for."""
    variant = Variant("timm_vit_patch8")
    plan = tokenrt.plan(variant.path(), method=name, budget=Budget.flops(fraction), allow_noop=True)
    assert plan.macs_after <= fraction * plan.macs_before
    if fraction == 1:
        assert not plan.sites
        return
    removed = [before - after for before, after in zip(plan.counts(), plan.counts()[1:], strict=False)]
    assert removed == sorted(removed, reverse=True)
    milder = tokenrt.plan(
        variant.path(), method=name, budget=Budget.remove(max(min(removed) - 1, 0)), allow_noop=True
    )
    assert milder.macs_after > fraction * plan.macs_before


def test_a_share_of_the_work_on_the_command_line_and_in_python_agree(tmp_path: Path) -> None:
    import onnx
    from typer.testing import CliRunner

    from tokenrt.cli import app

    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    done = CliRunner().invoke(
        app, ["plan", str(path), "--method", "topk", "--flops", "0.8", "-o", str(tmp_path / "p.toml")]
    )
    assert done.exit_code == 0, done.stderr
    assert Plan.load(tmp_path / "p.toml") == tokenrt.plan(path, method="topk", budget=Budget.flops(0.8))
