"""Which plan is recommended: one that was searched for only where it is surely better than those that follow a rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Plan, PlannedSite
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.tune.families import Candidate, Freedom
from tokenrt.perf.tune.judged import Judged, alike, cheapest, front, least_harm, ranked
from tokenrt.perf.tune.wish import Wish

NOISE = np.random.default_rng(0).normal(0, 0.1, 24)


def judged(images: object, ratio: float = 0.5, *, freedom: Freedom = Freedom.RULE, sites: int = 1) -> Judged:
    places = tuple(PlannedSite(block, "after-attention", 9 - block) for block in range(sites))
    plan = Plan("tome", 10, 1, 8, places, True)
    values = tuple(float(value) for value in np.asarray(images))
    return Judged(Candidate("drawn", plan, ratio, freedom), Harm({"y": values}), ratio)


def test_a_lead_within_chance_goes_to_the_rule() -> None:
    rule = judged(1 + NOISE)
    assert least_harm([judged(1 + NOISE[::-1] - 0.01, freedom=Freedom.SITES), rule]) is rule


def test_a_lead_beyond_chance_goes_to_the_search() -> None:
    better = judged(0.9 + NOISE, freedom=Freedom.SITES)
    assert least_harm([judged(1 + NOISE), better]) is better


def test_a_shape_of_few_numbers_is_a_rule_and_free_sites_have_to_beat_it() -> None:
    rule, shape = judged(1 + NOISE), judged(0.9 + NOISE, freedom=Freedom.SHAPE)
    by_chance = judged(0.9 + NOISE[::-1] - 0.01, freedom=Freedom.SITES)
    assert least_harm([rule, shape, by_chance]) is shape
    assert least_harm([shape, by_chance]) is shape


def test_a_plan_that_its_likes_do_not_confirm_is_not_believed() -> None:
    """Of two that are as good by chance, the one whose neighbours are good too."""
    lonely, confirmed = judged(1 + NOISE, sites=1), judged(1.005 + NOISE[::-1], sites=7)
    neighbours = [judged(1.3 + NOISE, sites=2), judged(1.02 + NOISE, sites=6)]
    assert lonely.mean < confirmed.mean
    assert ranked([lonely, confirmed, *neighbours])[0] is confirmed


def test_how_much_a_plan_says_of_another() -> None:
    one, next_to, far = (judged([1.0], sites=count).plan for count in (2, 3, 8))
    assert alike(one, one) == 1
    assert 1 > alike(one, next_to) > alike(one, far) > 0
    other = replace(one, method="topk")
    assert alike(one, other) == pytest.approx(np.exp(-((0.1 / 0.15) ** 2)))


def test_what_surely_harms_more_comes_last() -> None:
    worse, best = judged(np.r_[np.full(30, 0.9), np.full(10, 5.0)]), judged(np.full(40, 1.0))
    assert best.surely_better(worse)
    assert ranked([worse, best]) == [best, worse]


def test_a_plan_that_gives_what_is_no_number_is_never_taken() -> None:
    broken, sound = np.full(12, 0.1), judged(1 + NOISE[:12])
    broken[3] = np.inf
    for freedom in Freedom:
        assert least_harm([judged(broken, freedom=freedom), sound]) is sound


def test_of_equals_the_one_with_fewer_sites() -> None:
    few = judged(1 + NOISE)
    assert least_harm([judged(1 + NOISE, sites=3), few]) is few
    assert least_harm([]) is None


def test_one_image_proves_nothing() -> None:
    rule = judged([1.0])
    assert least_harm([judged([0.1], freedom=Freedom.SITES), rule]) is rule
    assert rule.interval() == (1.0, 1.0)


def test_an_interval_holds_the_mean_and_narrows_with_images() -> None:
    few, many = judged(1 + NOISE[:6]), judged(1 + np.tile(NOISE, 8))
    for each in (few, many):
        low, high = each.interval()
        assert low < each.mean < high
    assert np.diff(many.interval()) < np.diff(few.interval())


def test_the_front_falls_in_harm_as_cost_rises() -> None:
    plans = [judged([3.0], 0.4), judged([2.0], 0.6), judged([2.5], 0.7), judged([1.0], 0.8)]
    assert [each.ratio for each in front(plans)] == [0.8, 0.6, 0.4]


def test_the_cheapest_within_a_drop_counts_the_doubt_of_a_search() -> None:
    wide = judged([0.0, 2.0] * 4, 0.4, freedom=Freedom.SITES)
    safe = judged([1.0] * 8, 0.6)
    assert cheapest([wide, safe], 1.1) is safe
    assert cheapest([wide, safe], 2.0) is wide
    assert cheapest([wide, safe], 0.5) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "needs one wish, and nothing is given"),
        ({"flops": 0.5, "latency": 3.0}, "--flops and --latency is given"),
        ({"flops": 1.2}, "--flops 1.2: expected a share"),
        ({"speedup": 1.0}, "--speedup 1: expected a factor above 1"),
        ({"max_drop": 0.0}, "--max-drop 0: expected a harm above 0"),
        ({"latency": float("nan")}, "--latency nan"),
    ],
)
def test_a_wish_is_one_and_within_bounds(given: dict[str, float], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        Wish.of(**given)


def test_what_a_wish_asks_of_the_cost() -> None:
    assert Wish.of(flops=0.6).most(None) == 0.6
    assert Wish.of(speedup=1.6).most(None) == pytest.approx(0.625)
    assert Wish.of(latency=3).most(4.0) == 0.75
    assert Wish.of(max_drop=0.1).most(None) is None
