"""Tokens that left come back when a method says so: against plain torch, exact on repeats, counted, planned and printed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests import zoo
from tests.helpers.tolerance import within_twice
from tests.passes.helpers.probes import SHORT, WHEN, Pairs, Strong, forward, registered
from tests.passes.helpers.repeats import inputs, without_positions
from tests.passes.helpers.running import (
    Variant,
    attended,
    close,
    dynamo,
    feeds,
    original,
    run,
    session,
)
from tokenrt.errors import NothingToDoError, PlanError, UnsupportedError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import reduce

VIT = Variant("timm_vit")
NARROW = 1e-6
BACK = WHEN[1:]
PLACES = {
    "never": ("after-attention", "after-block"),
    "before-last-block": ("after-attention", "after-block"),
    "before-next-site": ("after-attention", "after-block"),
    "after-attention": ("around-attention",),
}
# K at each block that has a site: three in a row, or two apart, so that something runs on fewer tokens.
BLOCKS = {
    ("never", "after-attention"): {0: 14, 1: 12, 3: 9},
    ("never", "after-block"): {0: 14, 1: 12, 2: 9},
    ("before-last-block", "after-attention"): {0: 14, 1: 12, 2: 9},
    ("before-last-block", "after-block"): {0: 12, 1: 9},
    ("before-next-site", "after-attention"): {0: 12, 1: 10, 3: 11},
    ("before-next-site", "after-block"): {0: 12, 2: 10},
    ("after-attention", "around-attention"): {0: 12, 1: 10, 3: 11},
}
CASES = [pytest.param(*case, id="-".join(case)) for case in BLOCKS]


@pytest.fixture(autouse=True, scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with registered(tmp_path_factory.mktemp("probes")) as module:
        yield module


@cache
def canonical(variant: Variant) -> ir.Model:
    """Once canonical a model is quicker to reduce again."""
    return prepare(variant.path()).model


def named(kind: str, when: str) -> str:
    return f"{kind}_{SHORT[when]}"


def planned(kind: str, when: str, where: str, path: Any, **options: Any) -> Any:
    """The zoo model at `path`, reduced at BLOCKS."""
    plan = BLOCKS[when, where]
    return reduce(
        path,
        method=named(kind, when),
        budget=Budget.tokens([*plan.values()], [*plan]),
        site=where,
        **options,
    )


def against_torch(variant: Variant, method: Strong | Pairs, when: str, where: str) -> None:
    """Four pictures, as many at once as the file takes."""
    kind = type(method).__name__.lower()
    net = zoo.build(variant.name)[0].net
    options = {"spread": method.spread} if isinstance(method, Strong) else {}
    ready = session(planned(kind, when, where, canonical(variant), options=options).model)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    batch = 4 if variant.batch == "dynamic" else int(variant.batch)
    parts = [run(ready, {"pixel_values": part.numpy()})[0] for part in images.split(batch)]
    with torch.no_grad():
        plain, _ = forward(net, images, method, when, where, BLOCKS[when, where])
        exact, margin = forward(net, images.double(), method, when, where, BLOCKS[when, where])
    assert margin > NARROW, "these pictures leave a decision to rounding: take another seed"
    within_twice(np.concatenate(parts), exact.numpy(), plain.numpy())


@pytest.mark.parametrize(("when", "where"), CASES)
@pytest.mark.parametrize(
    ("name", "spread"), [("timm_vit", False), ("timm_vit_avg_no_class", True)], ids=["dropped", "spread"]
)
def test_dropped_tokens_come_back_as_they_left_or_by_affinity(
    name: str, spread: bool, when: str, where: str
) -> None:
    """The choice at a later site also reads what the site before handed on."""
    against_torch(Variant(name), Strong(zoo.entry(name).protected, spread), when, where)


@pytest.mark.parametrize(("when", "where"), CASES)
def test_merged_tokens_come_back_as_copies_and_count_once_again(when: str, where: str) -> None:
    against_torch(Variant("timm_vit_avg"), Pairs(1), when, where)


FORMS = [
    dynamo("timm_vit"),
    dynamo("timm_vit", 23),
    Variant("timm_vit", batch=2),
    dynamo("timm_vit", batch=1),
]


@pytest.mark.parametrize("variant", FORMS, ids=str)
@pytest.mark.parametrize("when", BACK)
def test_every_form_of_the_graph(variant: Variant, when: str) -> None:
    against_torch(variant, Pairs(1) if when == "after-attention" else Strong(1), when, PLACES[when][0])


REPEATING = [
    *((name, *case) for name in ("hf_bert", "dense_taps") for case in [*BLOCKS][2:]),
    ("post_norm", "after-attention", "around-attention"),
    ("post_norm", "before-next-site", "after-block"),
    ("timm_vit_res_post_norm", "after-attention", "around-attention"),
    ("timm_vit_parallel_scaling", "after-attention", "around-attention"),
    ("torchvision_vit", "after-attention", "around-attention"),
    ("torchvision_vit", "before-last-block", "after-attention"),
    ("hf_beit", "after-attention", "around-attention"),
    ("hf_vit_hidden_states", "before-next-site", "after-attention"),
]


@pytest.mark.parametrize(("name", "when", "where"), REPEATING)
def test_equal_neighbours_lose_nothing(name: str, when: str, where: str) -> None:
    """Patches or words come in equal pairs, so that merging and copying back changes no output."""
    entry = zoo.entry(name)
    free = entry.tokens - entry.protected
    labels = np.repeat(np.random.default_rng(3).integers(0, 6, (3, -(-free // 2))), 2, axis=1)[:, :free]
    path, keep = without_positions(Variant(name)), entry.tokens - free // 3
    # Where tokens stay away, a second site would merge what is no pair.
    budget = (
        Budget.tokens([keep], [0]) if when == "before-last-block" else Budget.tokens([keep, keep], [0, 2])
    )
    result = reduce(path, method=named("pairs", when), budget=budget, site=where)
    given = inputs(name, labels, padding=(0, 6, 11) if entry.inputs == "text" else ())
    found, wanted = run(result.model, given), run(path, given)
    if "attention_mask" in given:
        mask = given["attention_mask"][:, :, None]
        found, wanted = ([o * mask if o.ndim == 3 else o for o in outputs] for outputs in (found, wanted))
    close(found, wanted)


@pytest.mark.parametrize(("when", "where"), CASES)
def test_every_attention_sees_the_tokens_that_are_there(when: str, where: str) -> None:
    result = planned("pairs", when, where, canonical(VIT))
    plan, here, wanted = BLOCKS[when, where], 17, []
    for block in range(4):
        if (when == "before-last-block" and block == 3) or (when == "before-next-site" and block in plan):
            here = 17
        around = where == "around-attention"
        wanted.append(plan.get(block, 17) if around else here)
        here = here if around else plan.get(block, here)
    assert attended(result.model, feeds("timm_vit")) == wanted
    first = [17, *plan.values()][: len(plan)]
    arriving = first if when in ("never", "before-last-block") else [17] * len(plan)
    assert result.plan.arriving() == arriving
    applied = [site for site in result.report.sites if site.status == "applied"]
    assert [(site.block, site.where, site.tokens_in, site.tokens_out) for site in applied] == [
        (block, where, before, after) for (block, after), before in zip(plan.items(), arriving, strict=True)
    ]
    assert {site.where for site in result.report.sites} == set(PLACES[when])


def test_the_work_is_that_of_the_tokens_that_are_there() -> None:
    """Each block of 17 tokens, 64 wide, 4 heads of 16: qkv, scores, mixing, projection, MLP of 256."""

    def attention(tokens: int) -> int:
        return 4 * tokens * 64 * 64 + 2 * tokens * tokens * 64

    def mlp(tokens: int) -> int:
        return 2 * tokens * 64 * 256

    def macs(when: str, where: str) -> int:
        plan = planned("pairs", when, where, canonical(VIT)).plan
        return plan.macs_before - plan.macs_after

    full, whole = attention(17), mlp(17)
    kept = BLOCKS["after-attention", "around-attention"].values()
    assert macs("after-attention", "around-attention") == sum(full - attention(k) for k in kept)
    kept = BLOCKS["before-next-site", "after-attention"].values()
    later = full + whole - attention(10) - mlp(10)  # block 2 runs on what block 1 left
    assert macs("before-next-site", "after-attention") == sum(whole - mlp(k) for k in kept) + later
    assert macs("before-last-block", "after-block") == 2 * (full + whole) - sum(
        attention(k) + mlp(k) for k in (12, 9)
    )


@pytest.mark.parametrize("when", BACK)
def test_nothing_removed_changes_nothing(when: str) -> None:
    path, where = canonical(VIT), PLACES[when][0]
    result = reduce(
        path, method=named("pairs", when), budget=Budget.tokens([17, 17], [0, 1]), site=where, allow_noop=True
    )
    assert not result.plan.sites
    given = feeds("timm_vit")
    for found, wanted in zip(run(result.model, given), run(original(VIT), given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


BUDGETS = {
    "remove": Budget.remove(3),
    "keep": Budget.keep(0.5, [0, 1]),
    "flops": Budget.flops(0.9),
    "schedule": Budget.schedule("decreasing", 3),
}


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("when", BACK)
def test_every_budget(when: str, kind: str) -> None:
    result = reduce(canonical(VIT), method=named("strong", when), budget=BUDGETS[kind])
    plan = result.plan
    blocks = [site.block for site in plan.sites]
    assert {site.where for site in plan.sites} == {PLACES[when][0]}
    assert when != "before-last-block" or max(blocks) < 3
    if kind == "remove":
        assert blocks == ([0, 1, 2] if when == "before-last-block" else [0, 1, 2, 3])
        assert [a - site.tokens for a, site in zip(plan.arriving(), plan.sites, strict=True)] == [3] * len(
            blocks
        )
    if kind == "keep":
        assert [site.tokens for site in plan.sites] == ([9, 5] if when == "before-last-block" else [9, 9])
    if kind == "flops":
        assert plan.macs_after <= 0.9 * plan.macs_before
    assert np.isfinite(run(result.model, feeds("timm_vit"))[0]).all()


@pytest.mark.parametrize("when", BACK)
def test_a_plan_file_says_it_all(when: str, tmp_path: Path) -> None:
    path, where = canonical(VIT), PLACES[when][0]
    first = planned("strong", when, where, path)
    first.plan.save(tmp_path / "plan.toml")
    read = Plan.load(tmp_path / "plan.toml")
    assert read.sites == first.plan.sites
    assert read.grid == (4, 4)
    again = reduce(path, plan=read)
    for one, other in zip(
        run(first.model, feeds("timm_vit")), run(again.model, feeds("timm_vit")), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("when", "site", "layers", "message"),
    [
        (
            "after-attention",
            "after-block",
            None,
            "strong_around sits around-attention, where .* come back right after",
        ),
        ("never", "around-attention", None, "strong_stay sits after-attention or after-block"),
        (
            "before-last-block",
            "after-attention",
            [1, 3],
            "come back before block 3, the last; .* blocks 0 to 2",
        ),
        ("before-last-block", "after-block", [2], "come back before block 3, the last; .* blocks 0 to 1"),
    ],
)
def test_places_that_make_no_sense_are_refused(
    when: str, site: str, layers: list[int] | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        reduce(
            canonical(VIT),
            method=named("strong", when),
            budget=Budget.remove(2, layers),
            site=site,
        )


def test_tokens_that_come_back_at_once_save_nothing() -> None:
    with pytest.raises(NothingToDoError, match="saves no work"):
        reduce(
            canonical(VIT),
            method="strong_next",
            budget=Budget.remove(2, [3]),
            site="after-block",
        )


def test_keys_do_not_exist_at_the_attention_s_input(probes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.PairsAround, "reduce", lambda self, op, taps, site: taps.metric())
    with pytest.raises(UnsupportedError, match="before it has queries, keys, values or scores"):
        reduce(canonical(VIT), method="pairs_around", budget=Budget.remove(2))


@pytest.mark.parametrize(("when", "where"), CASES)
def test_the_grid_is_told_where_all_tokens_are_there(when: str, where: str, probes: Any) -> None:
    probes.SEEN.clear()
    planned("strong", when, where, canonical(VIT))
    told = [site.grid for site in probes.SEEN]
    once = when in ("never", "before-last-block")
    assert told == [(4, 4), *([None if once else (4, 4)] * (len(BLOCKS[when, where]) - 1))]


@pytest.mark.parametrize("when", BACK)
def test_rows_are_independent_and_half_precision_works(when: str) -> None:
    where = PLACES[when][0]
    ready = session(planned("strong", when, where, canonical(VIT)).model)
    given = feeds("timm_vit", 3)
    whole = run(ready, given)
    for row in range(3):
        alone = run(ready, {name: value[row : row + 1] for name, value in given.items()})
        close(alone, [output[row : row + 1] for output in whole])
    half = planned("pairs", when, where, Variant("timm_vit", dtype="fp16").path())
    (found,) = run(half.model, feeds("timm_vit"))
    assert found.dtype == np.float16
    assert np.isfinite(found).all()


@pytest.mark.parametrize("when", BACK)
def test_the_source_map_is_that_of_the_last_site(when: str) -> None:
    result = planned("pairs", when, PLACES[when][0], canonical(VIT), source_map=True)
    _, found = run(result.model, feeds("timm_vit", 3))
    kept = result.plan.sites[-1].tokens
    assert (found == found[:1]).all()
    assert sorted(set(found[0].tolist())) == list(range(kept))


def test_learned_queries_given_as_arrays_or_as_a_file(tmp_path: Path) -> None:
    """Token Cropr behind each block: all tokens are there again in the last one."""
    weights = {"queries": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)}
    np.savez(tmp_path / "queries.npz", **weights)
    outputs = []
    for given in (weights, tmp_path / "queries.npz"):
        result = reduce(
            canonical(VIT),
            method="cropr",
            budget=Budget.remove(4),
            site="after-block",
            options={"weights": given},
        )
        assert attended(result.model, feeds("timm_vit")) == [17, 13, 9, 17]
        outputs.append(run(result.model, feeds("timm_vit"))[0])
        if given is weights:
            assert 'weights = "arrays: queries"' in result.model.metadata_props["tokenrt.plan"]
            with pytest.raises(PlanError, match="option 'weights' of cropr holds arrays"):
                result.plan.save(tmp_path / "plan.toml")
        else:
            result.plan.save(tmp_path / "plan.toml")
            assert Plan.load(tmp_path / "plan.toml").options["weights"] == str(given)
    np.testing.assert_array_equal(*outputs)
