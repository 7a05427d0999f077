"""Video methods in a whole model: frames known from its grid, kept apart, and counted from site to site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenrt
from tests.passes.helpers.refusals import refused_line
from tests.passes.helpers.running import Array, Variant, attended, distance, feeds, original, run
from tokenrt.passes.graph.model import save
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

CLIP, WITH_CLASS = Variant("hf_videomae"), Variant("hf_vivit")
FRAMES, EACH = 4, 16
CASES: dict[str, tuple[Budget, dict[str, Any]]] = {
    "tempme": (Budget.remove(4), {}),
    "testa": (Budget.tokens([45, 26, 26], [0, 1, 2]), {}),
    "sta": (Budget.schedule("stages", 0.75), {}),
}
NAMES = sorted(CASES)


def made(name: str, budget: Budget | None = None, variant: Variant = CLIP, **options: Any) -> Reduced:
    usual, own = CASES[name]
    wanted = budget or usual
    if wanted.counts and variant == WITH_CLASS:
        wanted = Budget.tokens([count + 1 for count in wanted.counts], wanted.layers)
    return reduce(variant.path(), method=name, budget=wanted, options={**own, **options}, source_map=True)


def sources(reduced: Reduced) -> Array:
    """The token behind the last block each of the 64 original ones is in, for two clips."""
    return run(reduced.model, feeds(CLIP.name))[-1]


@pytest.mark.parametrize("variant", [CLIP, WITH_CLASS], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_reduced_as_planned(name: str, variant: Variant) -> None:
    reduced = made(name, variant=variant)
    given = feeds(variant.name, 3)
    before, found = run(original(variant), given), run(reduced.model, given)
    assert [output.shape for output in found[:-1]] == [output.shape for output in before]
    assert all(np.isfinite(output).all() for output in found)
    assert distance(found[:-1], before) > 1e-4
    left = {site.block: site.tokens for site in reduced.plan.sites}
    seen, here = [], reduced.plan.protect + FRAMES * EACH
    for block in range(4):
        seen.append(here)
        here = left.get(block, here)
    if name != "sta":  # its walk has softmaxes of its own
        assert attended(reduced.model, given)[:4] == seen
    assert all(len(np.unique(image[image >= 0])) == here for image in found[-1])


@pytest.mark.parametrize("variant", [CLIP, WITH_CLASS], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_clips_do_not_mix(name: str, variant: Variant) -> None:
    model, given = made(name, variant=variant).model, feeds(variant.name, 3)
    turned = {key: value[[2, 0, 1]] for key, value in given.items()}
    for one, other in zip(run(model, given), run(model, turned), strict=True):
        np.testing.assert_allclose(one[[2, 0, 1]], other, atol=1e-5)


def test_tempme_keeps_frames_apart_until_they_are_joined() -> None:
    """Of four blocks the third joins pairs of frames, the last both pairs."""
    for layers, clips in (([0, 1], 4), ([0, 2], 2), ([0, 1, 2, 3], 1)):
        removed = 4
        found = sources(made("tempme", Budget.remove(removed, layers)))
        left = FRAMES * EACH - removed * len(layers)
        own = found.reshape(2, clips, -1)
        for clip in range(clips):
            assert set(own[:, clip].ravel() // (left // clips)) == {clip}


def test_testa_merges_a_place_with_the_same_place() -> None:
    found = sources(made("testa", Budget.tokens([48, 32], [0, 2]), merge="frames"))
    assert sorted(np.unique(found)) == list(range(32))
    places = np.tile(np.arange(EACH), (2, FRAMES))
    assert (found % EACH == places).all()
    frames = found.reshape(2, FRAMES, EACH) // EACH
    assert (frames == frames[..., :1]).all()


def test_sta_leaves_every_frame_its_share() -> None:
    found = sources(made("sta", Budget.tokens([48], [0])))
    kept = found.reshape(2, FRAMES, EACH)
    assert ((kept >= 0).sum(axis=2) == 12).all()
    assert all(set(kept[:, frame][kept[:, frame] >= 0] // 12) == {frame} for frame in range(FRAMES))


@pytest.mark.parametrize("name", ["tempme", "testa"])
def test_a_picture_is_a_clip_of_one_frame(name: str) -> None:
    """So it is merged as by ToMe."""
    variant = Variant("timm_vit")
    outputs = [
        run(
            reduce(variant.path(), method=method, budget=Budget.remove(2, [0, 1, 3])).model, feeds("timm_vit")
        )
        for method in (name, "tome")
    ]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_file_without_a_class_token_is_read_again(tmp_path: Path) -> None:
    """No token stands aside in its matching: an empty list, whose type no entry tells."""
    reduce(CLIP.path(), method="tome", budget=Budget.remove(4, [0]), output=tmp_path / "r.onnx")
    assert [each.tokens for each in tokenrt.inspect(tmp_path / "r.onnx").transformers] == [64, 60]


def test_frames_may_be_said(tmp_path: Path) -> None:
    """Two frames of 32 tokens instead of four of 16, and a number that does not fit."""
    found = sources(made("sta", Budget.tokens([48], [0]), frames=2)).reshape(2, 2, 32)
    assert ((found >= 0).sum(axis=2) == 24).all()
    line = ["--method", "sta", "--tokens", "48", "--layers", "0", "--set", "frames=3"]
    target = tmp_path / "out.onnx"
    refused_line(
        tmp_path, "64 tokens are not 3 frames of equal size", "reduce", CLIP.path(), "-o", target, *line
    )


@pytest.mark.parametrize(
    "budget",
    [
        Budget.keep(0.7, [0, 2]),
        Budget.flops(0.9),
        Budget.flops(0.8),
        Budget.schedule("decreasing", 7),
        Budget.schedule("cosine", 7),
        Budget.schedule("stages", 0.9),
        Budget.schedule("stages-of-original", 0.7),
    ],
    ids=lambda budget: f"{budget.option()}",
)
@pytest.mark.parametrize(("name", "options"), [("tempme", {}), ("sta", {}), ("testa", {"merge": "patches"})])
def test_budgets_count_in_frames(name: str, options: dict[str, Any], budget: Budget) -> None:
    """The plan names the frames found, and every count is a multiple of them, at least what was asked to stay."""
    plan = tokenrt.plan(CLIP.path(), method=name, budget=budget, options=options)
    assert plan.options["frames"] == FRAMES
    assert all(count % FRAMES == 0 for count in plan.counts())
    if budget.kind == "keep":
        assert plan.counts() == [64, 48, 36]  # ceil(0.7 * 64) = 45 and ceil(0.7 * 48) = 34
    if budget.kind == "flops":
        assert plan.macs_after <= budget.amount * plan.macs_before


def test_a_plan_on_file_is_followed(tmp_path: Path) -> None:
    plan = tokenrt.plan(CLIP.path(), method="tempme", budget=Budget.remove(4))
    plan.save(tmp_path / "plan.toml")
    found = reduce(CLIP.path(), plan=tmp_path / "plan.toml", source_map=True)
    np.testing.assert_array_equal(sources(found), sources(made("tempme")))


def test_counts_that_are_no_equal_frames(tmp_path: Path) -> None:
    line = ["--method", "tempme", "--remove", "5", "-o", tmp_path / "out.onnx"]
    refused_line(tmp_path, "so 59 of 64 cannot stay; 56 or 60 can", "reduce", CLIP.path(), *line)


@pytest.mark.parametrize(
    "name", ["sta", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tempme", "testa"))]
)
def test_an_engine_can_be_built(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")
    budget, options = CASES[name]
    save(reduce(CLIP.path(), method=name, budget=budget, options=options).model, tmp_path / "r.onnx")
    tokenrt.build(tmp_path / "r.onnx", target="rtx-sm89", output=tmp_path / "r.engine")
    assert (tmp_path / "r.engine").stat().st_size > 0
