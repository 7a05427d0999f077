"""Schedules: published token counts, and what holds for every schedule at any size."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenrt
from tests.passes.helpers import tiny
from tokenrt.errors import PlanError
from tokenrt.passes import methods
from tokenrt.passes.planning import schedules
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.planning.resolve import resolve

PATIENT = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BY_COUNT = [name for name, schedule in schedules.SCHEDULES.items() if schedule.takes == "R"]
BY_RATIO = [name for name, schedule in schedules.SCHEDULES.items() if schedule.takes == "RATIO"]
METHODS = ["tome", "topk", "evit", "slice"]


def behind(
    name: str,
    value: Any,
    method: str,
    tokens: int = 197,
    blocks: int = 12,
    protect: int = 1,
    layers: Any = None,
) -> list[int]:
    """Tokens behind every block."""
    budget = Budget.schedule(name, value, layers)
    sites, _ = resolve(budget, methods.get(method)(), tokens, protect, blocks, "after-attention")
    left, here = {site.block: site.tokens for site in sites}, tokens
    return [here := left.get(block, here) for block in range(blocks)]


def removed(counts: list[int], tokens: int) -> list[int]:
    return [before - after for before, after in itertools.pairwise([tokens, *counts])]


def test_evit_on_deit_small() -> None:
    """The published counts at 0.7: class token, kept and fused ones."""
    assert behind("stages", 0.7, "evit") == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3
    assert behind("stages", 0.5, "evit")[3::3] == [100, 52, 28]


def test_vispco_between_two_layers() -> None:
    """576 tokens of a picture and 60 words, 0.31 around layer 2.4: what each of 28 layers sees, as recorded from the release."""
    seen = [636, *behind("sigmoid", "0.31@2.4", "topk", 636, 28, 60)[:-1]]
    assert seen == [636, 635, 627, 238, 237, *[236] * 23]


def test_dynamicvit_on_deit_small() -> None:
    """0.7, 0.49 and 0.343 of 196 patches, rounded down, and the class token."""
    assert behind("stages-of-original", 0.7, "topk") == [197] * 3 + [138] * 3 + [97] * 3 + [68] * 3


def test_tome_on_deit_small() -> None:
    assert behind("constant", 13, "tome") == list(range(184, 40, -13))
    # int(2r - 2r l / 11) for l = 0 .. 11
    assert removed(behind("decreasing", 13, "tome"), 197) == [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]


def test_twenty_four_blocks() -> None:
    assert behind("constant", 8, "tome", blocks=24)[-2:] == [13, 7]
    assert [block for block, r in enumerate(removed(behind("stages", 0.5, "topk", blocks=24), 197)) if r] == [
        6,
        12,
        18,
    ]


def test_once_at_one_block() -> None:
    """ceil(0.7 * 196) patches and the class token stay: at a quarter of the blocks, or where the value says."""
    assert behind("once", 0.7, "topk") == [197] * 3 + [139] * 9
    assert behind("once", "0.7@5", "evit") == [197] * 5 + [140] * 7
    assert behind("once", 0.7, "topk", layers=[0]) == [139] * 12
    assert behind("once", "0.5", "tome", blocks=3) == [99] * 3
    with pytest.raises(PlanError, match="tome can leave at least 99 of 197"):
        behind("once", 0.3, "tome")
    sites, notes = resolve(
        Budget.schedule("once", "0.7@2").rounded(8), methods.get("topk")(), 197, 1, 12, "after-attention"
    )
    assert [(site.block, site.tokens) for site in sites] == [(2, 136)]
    assert notes[-1].endswith("; 61 of 197 tokens leave in all")


@PATIENT
@given(
    method=st.sampled_from(METHODS),
    tokens=st.integers(4, 1000),
    protect=st.integers(0, 5),
    blocks=st.integers(1, 40),
    block=st.none() | st.integers(0, 39),
    ratio=st.floats(0.01, 1),
)
def test_once_is_keep_at_that_block(
    method: str, tokens: int, protect: int, blocks: int, block: int | None, ratio: float
) -> None:
    protect = min(protect, tokens - 2)
    block = None if block is None else block % blocks
    at = blocks // 4 if block is None else block
    value = repr(ratio) if block is None else f"{ratio!r}@{block}"
    found = []
    for budget in (Budget.schedule("once", value), Budget.keep(ratio, [at])):
        try:
            found.append(resolve(budget, methods.get(method)(), tokens, protect, blocks, "after-block")[0])
        except PlanError as error:
            found.append(str(error))
    assert found[0] == found[1]


@pytest.mark.parametrize("removal", range(33))
@pytest.mark.parametrize("blocks", [2, 3, 12, 24, 32, 40])
def test_decreasing_is_the_list_of_the_release(removal: int, blocks: int) -> None:
    """An even fall from 2r to 0 in floating point, each entry cut off."""
    step = -2 * removal / (blocks - 1)
    listed = [int(2 * removal + step * block) for block in range(blocks)]
    tokens = 10_000
    assert removed(behind("decreasing", removal, "slice", tokens, blocks), tokens) == listed


def test_cosine_follows_the_curve() -> None:
    """Of R L = 96 tokens the first half of twelve blocks removes 96 (1/2 + 1/pi), within the rounding."""
    counts = removed(behind("cosine", 8, "topk"), 197)
    assert sum(counts) == 96
    assert counts == sorted(counts, reverse=True)
    assert abs(sum(counts[:6]) - 96 * (0.5 + 1 / 3.141592653589793)) <= 6
    assert counts[0] in (15, 16)
    assert counts[-1] == 0


def test_one_block_takes_all_of_it() -> None:
    for name in BY_COUNT:
        assert behind(name, 5, "topk", 20, blocks=1) == [15]
        assert behind(name, 5, "topk", 20, blocks=3, layers=[1]) == [20, 15, 15]


@pytest.mark.parametrize(
    "rates",
    [
        {"prune": [0, 4, 4, 0], "merge": [8, 8, 0, 0]},
        {"prune_kept": [197, 185, 181, 181], "merge_kept": [189, 181, 181, 200]},
    ],
    ids=["leave", "stay"],
)
def test_rates_from_a_file(rates: dict[str, list[int]], tmp_path: Path) -> None:
    wanted = [189, 177, 173, 173] if "prune" in rates else [189, 181, 181, 181]
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    (tmp_path / "rates.toml").write_text("\n".join(f"{key} = {values}" for key, values in rates.items()))
    for source in (rates, tmp_path / "rates.json", str(tmp_path / "rates.toml")):
        assert behind("table", source, "topk", blocks=4) == wanted


@pytest.mark.parametrize(
    ("rates", "layers", "survive", "counts"),
    [
        ({"prune": [1, 0], "merge": [1, 1]}, None, "5,4", [6, 4, 3]),
        ({"prune_kept": [6, 3], "merge_kept": [5, 3]}, None, "6,3", [6, 5, 3]),
        ({"prune": [2], "merge": [1]}, [1], "6,4", [6, 3]),
    ],
)
def test_diffrate_prunes_and_merges_by_its_table(
    rates: dict[str, list[int]], layers: list[int] | None, survive: str, counts: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    budget = Budget.schedule("table", rates, layers)
    plan = tokenrt.plan(path, method="diffrate", budget=budget)
    assert plan.counts() == counts
    assert plan.options["prune_kept"] == survive
    given = tokenrt.plan(path, method="diffrate", budget=budget, options={"prune_kept": "4"})
    assert given.options["prune_kept"] == "4"
    assert tokenrt.reduce(path, plan=plan).plan.counts() == counts


def test_one_list_of_rates_is_enough() -> None:
    assert behind("table", {"merge": [3, 0, 2]}, "tome", 20, 3) == [17, 17, 15]
    assert behind("table", {"prune_kept": [25, 11, 11]}, "tome", 20, 3) == [20, 11, 11]


@pytest.mark.parametrize("layers", [None, [1, 4]])
def test_constant_is_what_remove_does(layers: list[int] | None) -> None:
    one, other = (
        resolve(budget, methods.get("tome")(), 50, 1, 6, "after-block")
        for budget in (Budget.schedule("constant", 9, layers), Budget.remove(9, layers))
    )
    assert one[0] == other[0]
    assert one[1][:-1] == other[1]


def test_stages_are_what_keep_does_at_their_blocks() -> None:
    for method, ratio in itertools.product(METHODS[1:], (0.3, 0.5, 0.7, 1.0)):
        keep = resolve(Budget.keep(ratio, [3, 6, 9]), methods.get(method)(), 197, 1, 12, "after-attention")
        named = resolve(
            Budget.schedule("stages", ratio), methods.get(method)(), 197, 1, 12, "after-attention"
        )
        assert named[0] == keep[0]


@PATIENT
@given(
    name=st.sampled_from(BY_COUNT),
    method=st.sampled_from(METHODS),
    tokens=st.integers(4, 400),
    protect=st.integers(0, 5),
    blocks=st.integers(1, 40),
    removal=st.integers(0, 40),
)
def test_removals_fall_and_stay_within_limits(
    name: str, method: str, tokens: int, protect: int, blocks: int, removal: int
) -> None:
    protect = min(protect, tokens - 2)
    made = methods.get(method)()
    try:
        counts = behind(name, removal, method, tokens, blocks, protect)
    except PlanError:
        return
    left, here = removed(counts, tokens), tokens
    assert min(left) >= 0
    assert sum(left) <= removal * blocks
    for after in counts:
        assert after == here or made.fewest(here, protect) <= after > protect
        here = after
    assert all(before >= after for before, after in itertools.pairwise(left))


@PATIENT
@given(name=st.sampled_from(BY_COUNT), blocks=st.integers(1, 60), removal=st.integers(0, 60))
def test_totals_where_nothing_stands_in_the_way(name: str, blocks: int, removal: int) -> None:
    """Constant and cosine remove R L; decreasing cuts off less than one token a block."""
    left = removed(behind(name, removal, "slice", 10_000, blocks), 10_000)
    short = removal * blocks - sum(left)
    assert 0 <= short < blocks if name == "decreasing" else short == 0
    assert left == sorted(left, reverse=True)
    assert left[0] <= 2 * removal


@PATIENT
@given(
    name=st.sampled_from([name for name in BY_COUNT if name != "constant"]),
    blocks=st.integers(1, 40),
    removal=st.integers(0, 60),
    unit=st.integers(1, 16),
)
def test_clips_lose_whole_frames_worth(name: str, blocks: int, removal: int, unit: int) -> None:
    """What leaves is a multiple of the frames, at most R L, and still falls."""
    clip = methods.get("sta").from_options({"frames": unit})
    sites, _ = resolve(Budget.schedule(name, removal), clip, 10_000 * unit, 0, blocks, "after-attention")
    left = [
        before - after for before, after in itertools.pairwise([10_000 * unit, *(s.tokens for s in sites)])
    ]
    assert all(count % unit == 0 for count in left)
    assert left == sorted(left, reverse=True)
    short = removal * blocks - sum(left)
    assert 0 <= short < (unit if name == "cosine" else unit * blocks)


@PATIENT
@given(
    name=st.sampled_from(BY_RATIO),
    method=st.sampled_from(METHODS[1:]),
    tokens=st.integers(4, 1000),
    protect=st.integers(0, 5),
    blocks=st.integers(4, 40),
    ratio=st.floats(0.01, 1),
)
def test_ratios_keep_their_share(
    name: str, method: str, tokens: int, protect: int, blocks: int, ratio: float
) -> None:
    protect = min(protect, tokens - 2)
    try:
        counts = behind(name, ratio, method, tokens, blocks, protect)
    except PlanError:
        return
    fused = int(method == "evit")
    assert counts == sorted(counts, reverse=True)
    assert min(counts) > protect
    assert {block for block, left in enumerate(removed(counts, tokens)) if left} <= {
        blocks // 4, blocks // 2, 3 * blocks // 4,
    }  # fmt: skip
    free = tokens - protect
    if name == "stages-of-original":
        for stage in (1, 2, 3):
            kept = counts[blocks * stage // 4] - protect
            assert abs(kept - min(free, ratio**stage * free)) <= 1 + fused or kept <= 1 + fused
    else:
        assert counts[blocks // 4] - protect >= min(free, ratio * free)


def test_the_plan_says_what_it_follows(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    plan = tokenrt.plan(path, method="topk", budget=Budget.schedule("cosine", 1))
    assert plan.counts() == [6, 4]
    assert plan.notes == (
        "schedule cosine: from 2R to 0 along a half cosine, R times the blocks in all; 2 of 6 tokens leave in all",
    )
