"""Counts in multiples: the nearest that the method can leave, for every budget, in plans, files and bare arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import refused_line
from tokenrt.cli import app
from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget, Plan, all_return
from tokenrt.passes.planning.resolve import resolve

PATIENT = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
METHODS = ["tome", "topk", "evit", "slice", "tomesd", "sta"]
BUDGETS = st.one_of(
    st.integers(0, 40).map(Budget.remove),
    st.floats(0.05, 1).map(lambda ratio: Budget.keep(ratio, [0, 2])),
    st.integers(0, 40).map(lambda removed: Budget.schedule("decreasing", removed)),
    st.floats(0.05, 1).map(lambda ratio: Budget.schedule("stages", ratio)),
)


def behind(
    budget: Budget, method: str = "tome", tokens: int = 197, protect: int = 1, blocks: int = 12
) -> list[int]:
    sites, _ = resolve(budget, methods.get(method)(), tokens, protect, blocks, "after-attention")
    return [site.tokens for site in sites]


def test_eights_on_deit_small() -> None:
    assert behind(Budget.remove(8).rounded(8)) == [192, *range(184, 100, -8)]
    assert behind(Budget.keep(0.7, [3, 6, 9]).rounded(8), "evit") == [144, 104, 72]
    assert behind(Budget.tokens([190, 150], [3, 6]).rounded(8), "topk") == [192, 152]


def test_small_removals_add_up_instead_of_being_rounded_away() -> None:
    """Three a block of 197: what is removed follows the budget, with a step of 8 at every second or third block."""
    counts = behind(Budget.remove(3).rounded(8))
    assert counts == [192, 184, 176, 168, 160]
    assert abs(counts[-1] - behind(Budget.remove(3))[-1]) <= 4


def test_of_two_as_near_the_larger() -> None:
    assert behind(Budget.tokens([188], [0]).rounded(8), "topk") == [192]
    assert behind(Budget.tokens([187], [0]).rounded(8), "topk") == [184]


@PATIENT
@given(
    budget=BUDGETS,
    method=st.sampled_from(METHODS),
    tokens=st.integers(6, 400),
    protect=st.integers(0, 5),
    multiple=st.integers(1, 40),
)
def test_every_count_is_the_nearest_multiple_that_fits(
    budget: Budget, method: str, tokens: int, protect: int, multiple: int
) -> None:
    protect, made = min(protect, tokens - 2), methods.get(method)()
    where: Any = "around-attention" if all_return(made.returns) else "after-attention"
    try:
        exact, _ = resolve(budget, made, tokens, protect, 4, where)
    except PlanError:
        return
    sites, notes = resolve(budget.rounded(multiple), made, tokens, protect, 4, where)
    if multiple == 1:
        assert sites == exact
    wanted, here = {site.block: site.tokens for site in exact}, tokens
    left = {site.block: site.tokens for site in sites}
    assert left.keys() <= wanted.keys()
    for block, count in wanted.items():
        fits = [k for k in range(made.fewest(here, protect), here + 1) if k % multiple == 0]
        best = min((abs(k - count) for k in fits), default=None)
        kept = left.get(block, here)
        if best is None:
            assert kept == here
            assert any(note.startswith(f"block {block}: ") and "multiple" in note for note in notes)
        else:
            assert kept % multiple == 0
            assert abs(kept - count) == best
            assert not (kept < count and kept + 2 * best in fits)
        here = tokens if all_return(made.returns) else kept


@PATIENT
@given(
    frames=st.integers(1, 12),
    each=st.integers(2, 60),
    multiple=st.integers(1, 24),
    removed=st.integers(1, 60),
)
def test_clips_still_lose_whole_frames_worth(frames: int, each: int, multiple: int, removed: int) -> None:
    clip = methods.get("sta").from_options({"frames": frames})
    kept = clip.nearest(frames * each - removed, frames * each, 0, multiple)
    if kept is not None:
        assert kept % multiple == 0
        assert kept % frames == 0
        assert clip.fewest(frames * each, 0) <= kept <= frames * each


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(tiny.model(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6])
def test_a_share_of_the_work_is_kept_by_the_rounded_counts(model: Path, share: float) -> None:
    plan = tokenrt.plan(model, method="slice", budget=Budget.flops(share).rounded(2))
    assert all(site.tokens % 2 == 0 for site in plan.sites)
    assert plan.macs_after <= share * plan.macs_before
    assert plan.multiple_of == 2


def test_plans_say_it_and_hold_to_it(model: Path, tmp_path: Path) -> None:
    plan = tokenrt.plan(model, method="topk", budget=Budget.remove(1).rounded(2))
    assert plan.counts() == [6, 4]
    reduced = tokenrt.reduce(model, plan=plan, output=tmp_path / "r.onnx")
    assert reduced.model.metadata_props["tokenrt.plan"].count("multiple_of = 2") == 1
    plan.save(tmp_path / "p.toml")
    assert Plan.load(tmp_path / "p.toml").multiple_of == plan.as_dict()["multiple_of"] == 2
    (tmp_path / "q.toml").write_text(
        (tmp_path / "p.toml").read_text().replace("multiple_of = 2", "multiple_of = 0")
    )
    with pytest.raises(PlanError, match="'multiple_of' must be 1 or more, found 0"):
        Plan.load(tmp_path / "q.toml")
    (tmp_path / "p.toml").write_text((tmp_path / "p.toml").read_text().replace("tokens = 4", "tokens = 3"))
    with pytest.raises(PlanError, match=r"site 0: 3 tokens are no multiple of 2, .* 4 is the nearest"):
        tokenrt.reduce(model, plan=tmp_path / "p.toml")


def test_where_no_multiple_fits(model: Path) -> None:
    with pytest.raises(NothingToDoError, match="with counts in multiples of 8"):
        tokenrt.plan(model, method="topk", budget=Budget.remove(1).rounded(8))
    plan = tokenrt.plan(model, method="topk", budget=Budget.remove(1).rounded(8), allow_noop=True)
    assert "topk can leave no multiple of 8 of 6 tokens" in plan.notes[0]


def test_bare_arrays(model: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 20, 4))
    for wanted, kept in ((18, 16), (20, 20), (12, 16), (11, 8)):
        found = tokenrt.apply_method("slice", {"x": x}, keep=wanted, multiple_of=8)
        assert found["tokens"].shape == (2, kept, 4)
    with pytest.raises(PlanError, match="no multiple of 32 of 20 tokens, 2 at the least"):
        tokenrt.apply_method("slice", {"x": x}, keep=5, multiple_of=32)
    with pytest.raises(PlanError, match="multiple_of=0"):
        tokenrt.apply_method("slice", {"x": x}, keep=5, multiple_of=0)


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    call = [
        "reduce",
        str(model),
        "-o",
        str(tmp_path / "r.onnx"),
        "--method",
        "topk",
        "--remove",
        "1",
        "--multiple-of",
    ]
    assert CliRunner().invoke(app, [*call, "2"]).exit_code == 0
    assert Plan.load(_plan_of(tmp_path / "r.onnx", tmp_path)).counts() == [6, 4]
    refused_line(tmp_path, "--multiple-of 0: expected a whole number", *call, "0")
    refused_line(tmp_path, "give one with it", "plan", model, "--method", "topk", "--multiple-of", "8")


def _plan_of(path: Path, folder: Path) -> Path:
    props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    (folder / "again.toml").write_text(props["tokenrt.plan"])
    return folder / "again.toml"
