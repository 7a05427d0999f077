"""Attention over frames and over places in turn: what leaves is left away in all places, or in all frames, alike.

The right numbers are those of TimeSformer's weights in torch, with the same frames or places dropped or merged.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenrt
from tests.passes.divided.reference import FRAMES, PLACES, Divided, attention, cuts
from tests.passes.helpers.running import run
from tokenrt import Budget, Reduced

T, SIDE = 4, 32
SLOW = pytest.mark.slow
COUNTS = {FRAMES: [3, 2], PLACES: [12, 7]}
TRANSFORMERS = {FRAMES: 0, PLACES: 1}
SELECTIONS: dict[str, dict[str, Any]] = {
    "topk": {"score": "received"},
    "divprune": {},
    "evit": {"fuse": False},
    "slice": {},
    "random": {},
    "sta": {},
}
MERGES = ("tome", "pitome", "testa", "tempme")

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def model() -> Any:
    """A TimesformerModel whose tables and class token are not zero, as they are where it was not trained."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    made = transformers.TimesformerModel(
        transformers.TimesformerConfig(image_size=SIDE, patch_size=8, num_frames=T, **sizes)
    ).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def clip(batch: int) -> torch.Tensor:
    return torch.randn(batch, T, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files by operator set and batch, each exported once."""
    folder = tmp_path_factory.mktemp("divided")

    @cache
    def path(opset: int, batch: int) -> Path:
        file = folder / f"{opset}-{batch}.onnx"

        class Hidden(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model()

            def forward(self, clip: torch.Tensor) -> Any:
                return self.model(clip).last_hidden_state

        torch.onnx.export(
            Hidden().eval(), (clip(batch),), str(file), dynamo=True, opset_version=opset, verbose=False,
            input_names=["clip"], output_names=["hidden"], external_data=False,
        )  # fmt: skip
        return file

    return path


def reduced(path: Path, method: str, axis: int, sites: int = 2, **options: Any) -> Reduced:
    budget = Budget.tokens(COUNTS[axis][:sites], [0, 1][:sites])
    chosen = [TRANSFORMERS[axis]]
    return tokenrt.reduce(
        path, method=method, budget=budget, transformers=chosen, options=options, source_map=True
    )


def compared(path: Path, batch: int, method: str, axis: int, **options: Any) -> None:
    """Equal to torch, and to nothing else: with other tokens left away torch says something else."""
    given = clip(batch)
    found = [
        run(reduced(path, method, axis, sites, **options).model, {"clip": given.numpy()}) for sites in (1, 2)
    ]
    maps = [torch.from_numpy(outputs[-1]) for outputs in found]
    assert [int(each.max()) + 1 for each in maps] == COUNTS[axis]
    net = Divided(model(), cuts(maps, [0, 1], 1 if axis == PLACES else 0), axis, merges=method in MERGES)
    with torch.no_grad():
        expected, whole = net(given).numpy(), model()(given).last_hidden_state.numpy()
    np.testing.assert_allclose(found[-1][0], expected, rtol=0, atol=1e-5)
    assert np.abs(expected - whole).max() > 1e-2


def test_two_axes_of_one_stream_are_two_transformers(exported: Any) -> None:
    found = tokenrt.inspect(exported(20, 2))
    assert [(each.tokens, each.protected, len(each.blocks)) for each in found.transformers] == [
        (4, 0, 3),
        (17, 1, 3),
    ]
    assert [each.grid for each in found.transformers] == [(4, 1, 1), (4, 4)]
    assert [each.across for each in found.transformers] == [16, 4]
    assert not found.refusals
    assert all("after-attention" in block.sites for each in found.transformers for block in each.blocks)


def test_the_longer_axis_is_the_default(exported: Any) -> None:
    plan = tokenrt.plan(
        exported(20, 2), method="topk", budget=Budget.keep(0.5, [0]), options={"score": "received"}
    )
    assert [(site.transformer, site.tokens) for site in plan.sites] == [(1, 9)]


@pytest.mark.parametrize("axis", [FRAMES, PLACES], ids=["frames", "places"])
@pytest.mark.parametrize("method", ["topk", "tome"])
def test_equals_torch(exported: Any, method: str, axis: int) -> None:
    compared(exported(20, 2), 2, method, axis, **SELECTIONS.get(method, {}))


def first(given: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The first layer, and the class token [B,1,1,C] and the tokens [B,P,T,C] that enter it."""
    stream = model().embeddings(given)
    return model().encoder.layer[0], stream[:, :1, None], stream[:, 1:].unflatten(1, (-1, T))


def heads(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """[3,...,H,N,D] queries, keys and values of rows [...,N,C]."""
    return module.attention.qkv(rows).unflatten(-1, (3, 2, -1)).movedim(-3, 0).transpose(-3, -2)


def test_places_are_chosen_by_the_mean_over_frames(exported: Any) -> None:
    made = reduced(exported(20, 2), "topk", PLACES, 1, score="received")
    with torch.no_grad():
        layer, token, x = first(clip(2))
        mixed = attention(layer.temporal_attention, layer.temporal_layernorm(x.flatten(0, 1)), 2)
        x = x + layer.temporal_dense(mixed.reshape(x.shape))
        rows = torch.cat((token.expand(-1, T, -1, -1), x.transpose(1, 2)), 2)
        query, key, _ = heads(layer.attention, layer.layernorm_before(rows))
        scores = (query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5).softmax(-1).mean((1, 2, 3))
    chosen = scores[:, 1:].topk(COUNTS[PLACES][0] - 1).indices.sort().values + 1
    found = run(made.model, {"clip": clip(2).numpy()})[-1]
    assert [np.flatnonzero(each >= 0)[1:].tolist() for each in found] == chosen.tolist()


def metric(axis: int) -> torch.Tensor:
    """[B,N,W*D]: keys of the first layer, mean over heads, of a frame's places side by side or of a place's frames."""
    with torch.no_grad():
        layer, token, x = first(clip(2))
        if axis == FRAMES:
            keys = heads(layer.temporal_attention, layer.temporal_layernorm(x))[1]
        else:
            mixed = attention(layer.temporal_attention, layer.temporal_layernorm(x.flatten(0, 1)), 2)
            x = x + layer.temporal_dense(mixed.reshape(x.shape))
            rows = torch.cat((token.expand(-1, T, -1, -1), x.transpose(1, 2)), 2)
            keys = heads(layer.attention, layer.layernorm_before(rows))[1][..., 1:, :]
        return torch.nn.functional.normalize(keys.mean(2).transpose(1, 2).flatten(2), dim=2)


@pytest.mark.parametrize("axis", [FRAMES, PLACES], ids=["frames", "places"])
def test_sta_drops_what_others_show_in_all_rows_together(exported: Any, axis: int) -> None:
    """Of one group: odd ones stay, and the even ones that no odd one resembles."""
    protect, count = int(axis == PLACES), COUNTS[axis][0]
    found = run(reduced(exported(20, 2), "sta", axis, 1).model, {"clip": clip(2).numpy()})[-1][:, protect:]
    for own, kept in zip(metric(axis), found, strict=True):
        best = (own[::2] @ own[1::2].T).amax(1)
        gone = 2 * best.argsort(descending=True)[: len(own) + protect - count]
        assert np.flatnonzero(kept < 0).tolist() == gone.sort().values.tolist()


@pytest.mark.parametrize("axis", [FRAMES, PLACES], ids=["frames", "places"])
def test_tempme_merges_what_is_alike_in_all_rows_together(exported: Any, axis: int) -> None:
    """The sources of a clip, every other token with the class token counted, of largest cosine go to their destinations."""
    protect, count = int(axis == PLACES), COUNTS[axis][0]
    found = run(reduced(exported(20, 2), "tempme", axis, 1).model, {"clip": clip(2).numpy()})[-1][:, protect:]
    for own, held in zip(metric(axis), found, strict=True):
        similar = own[protect::2] @ own[1 - protect :: 2].T
        groups = {token: {token} for token in range(len(own))}
        for source in similar.amax(1).argsort(descending=True)[: len(own) + protect - count].tolist():
            goal = int(similar[source].argmax())
            groups[2 * goal + 1 - protect] |= groups.pop(2 * source + protect)
        made = [{*np.flatnonzero(held == each).tolist()} for each in np.unique(held)]
        assert sorted(map(sorted, made)) == sorted(map(sorted, groups.values()))


def test_testa_merges_the_frame_that_most_places_would(exported: Any) -> None:
    made = reduced(exported(20, 2), "testa", FRAMES, 1)
    with torch.no_grad():
        layer, _, x = first(clip(2))
        keys = heads(layer.temporal_attention, layer.temporal_layernorm(x))[1].mean(2)
        keys = keys / keys.norm(dim=-1, keepdim=True)
        similar = keys[:, :, ::2] @ keys[:, :, 1::2].transpose(-2, -1)
        votes = torch.nn.functional.one_hot(similar.argmax(-1), 2).sum(1)
        gone = similar.amax(-1).mean(1).argmax(-1)
    found = run(made.model, {"clip": clip(2).numpy()})[-1]
    for clips, (source, tally) in enumerate(zip(gone.tolist(), votes, strict=True)):
        expected = [-1, 1, -1, 2]
        expected[2 * (1 - source)] = 0
        expected[2 * source] = 1 + int(tally[source].argmax())
        assert found[clips].tolist() == expected


def test_one_file_loses_frames_or_places(exported: Any) -> None:
    budget = Budget.tokens([3], [0])
    with pytest.raises(
        tokenrt.TokenrtError, match=r"cannot be reduced together: .* in two runs, frames first"
    ):
        tokenrt.reduce(exported(20, 2), method="slice", budget=budget, transformers=[0, 1])
    with pytest.raises(tokenrt.TokenrtError, match="rows of two axes together"):
        tokenrt.reduce(exported(20, 2), method="slice", budget=budget, transformers=[0], short="all")


def test_a_trained_score_is_the_mean_over_frames(exported: Any, tmp_path: Path) -> None:
    """Layers of the width of one token, and no other, rate the tokens that lie side by side."""
    drawn = np.random.default_rng(0)
    sizes = {"gate.0.weight": (6, 32), "gate.0.bias": (6,), "gate.2.weight": (1, 6), "gate.2.bias": (1,)}
    weights = {name: drawn.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    np.savez(tmp_path / "w.npz", **weights)
    made = reduced(exported(20, 2), "vtm", PLACES, 1, weights=str(tmp_path / "w.npz"))
    with torch.no_grad():
        layer, token, x = first(clip(2))
        x = Divided(model(), {}, PLACES).attended(layer, token, x)[1]
        one, two, three, four = map(torch.from_numpy, weights.values())
        rated = (torch.nn.functional.gelu(x @ one.T + two) @ three.T + four)[..., 0].mean(2)
    chosen = rated.topk(COUNTS[PLACES][0] - 1).indices.sort().values
    found = run(made.model, {"clip": clip(2).numpy()})[-1][:, 1:]
    for own, kept in zip(found, chosen.tolist(), strict=True):
        assert own[kept].tolist() == [*range(1, 1 + len(kept))]
    np.savez(tmp_path / "narrow.npz", **{**weights, "gate.0.weight": weights["gate.0.weight"][:, :16]})
    with pytest.raises(tokenrt.TokenrtError, match=r"must have shape \[6, 32\] here"):
        reduced(exported(20, 2), "vtm", PLACES, 1, weights=str(tmp_path / "narrow.npz"))


class Both(Divided):
    """Frames leave in the first layer and places in later ones; only the class token is right, nothing comes back."""

    def _block(self, layer: Any, token: torch.Tensor, x: torch.Tensor, cut: Any) -> Any:
        self.axis = self._axis(layer is self.model.encoder.layer[0])
        return super()._block(layer, token, x, cut)

    def _axis(self, first: bool) -> int:
        return FRAMES if first else PLACES

    def _restored(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("method", ["topk", "testa"])
def test_a_second_run_takes_places_behind_frames(exported: Any, method: str, tmp_path: Path) -> None:
    """Both steps of TESTA, or of a choice by content, in one file; where frames merge, each counts as one."""
    given, options = {"clip": clip(2).numpy()}, SELECTIONS.get(method, {})
    merges = {"proportional_attention": False} if method in MERGES else {}
    counts = [(Budget.tokens([3], [0]), [0]), (Budget.tokens([9], [0]), None)]
    path = exported(20, 2)
    for budget, chosen in counts:
        made = tokenrt.reduce(
            path, method=method, options=options, budget=budget, transformers=chosen, source_map=True,
            output=tmp_path / f"{budget.counts[0]}.onnx", **merges,
        )  # fmt: skip
        path = tmp_path / f"{budget.counts[0]}.onnx"
    assert made.plan.sites[0].transformer == 1
    found, frames, places = map(torch.from_numpy, run(made.model, given))
    both = {0: cuts([frames], [0], 0)[0], 1: cuts([places], [0], 1)[0]}
    net = Both(model(), both, FRAMES, merges=method in MERGES, proportional=False)
    with torch.no_grad():
        expected = net(clip(2))[:, 0].numpy()
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-5)


class Swapped(Both):
    """Places leave in the first layer, and frames in later ones."""

    def _axis(self, first: bool) -> int:
        return PLACES if first else FRAMES


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_a_second_run_takes_frames_behind_places(exported: Any, method: str, tmp_path: Path) -> None:
    """The layers with fewer places are a transformer of their own, and so are its frames."""
    given, merges = {"clip": clip(2).numpy()}, method in MERGES
    more = {"proportional_attention": False} if merges else {}
    path = exported(20, 2)
    for chosen, count in ((1, 9), (2, 3)):
        made = tokenrt.reduce(
            path, method=method, options=SELECTIONS.get(method, {}), budget=Budget.tokens([count], [0]),
            transformers=[chosen], source_map=True, output=tmp_path / f"{count}.onnx", **more,
        )  # fmt: skip
        path = tmp_path / f"{count}.onnx"
    found, places, frames = map(torch.from_numpy, run(made.model, given))
    both = {0: cuts([places], [0], 1)[0], 1: cuts([frames], [0], 0)[0]}
    net = Swapped(model(), both, PLACES, merges=merges, proportional=False)
    with torch.no_grad():
        expected = net(clip(2))[:, 0].numpy()
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-5)


def test_frames_that_come_back_where_places_leave_save_no_work(exported: Any, tmp_path: Path) -> None:
    """What is worked out again of all frames counts: the attention over places, beside the one over those that are left."""
    once, more = tmp_path / "once.onnx", {"method": "topk", "options": SELECTIONS["topk"]}
    tokenrt.reduce(exported(20, 2), budget=Budget.tokens([9], [0]), transformers=[1], output=once, **more)
    with pytest.raises(tokenrt.TokenrtError, match=r"saves no work: .* every token is needed again by"):
        tokenrt.reduce(once, budget=Budget.tokens([3], [0]), transformers=[0], **more)


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_frames_that_left_once_leave_no_second_time(exported: Any, method: str, tmp_path: Path) -> None:
    once, more = tmp_path / "once.onnx", {"options": SELECTIONS.get(method, {}), "transformers": [0]}
    tokenrt.reduce(exported(20, 2), method=method, budget=Budget.tokens([3], [0]), output=once, **more)
    with pytest.raises(tokenrt.TokenrtError, match="name every place in one plan of the model as it was"):
        tokenrt.reduce(once, method=method, budget=Budget.tokens([2], [1]), **more)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("tome", "make that file anew with --no-proportional-attention"),
        ("slice", "the rows beside it are fewer than at its entry, .* e.g. divprune"),
    ],
)
def test_what_leaves_no_place_for_a_second_run_says_what_would(
    exported: Any, method: str, reason: str, tmp_path: Path
) -> None:
    """Frames that merged and count by their sizes, and frames that are the same for all clips."""
    once = tmp_path / "once.onnx"
    tokenrt.reduce(
        exported(20, 2), method=method, budget=Budget.tokens([3], [0]), transformers=[0], output=once
    )
    assert any(re.search(reason, refusal.reason) for refusal in tokenrt.inspect(once).refusals)
    if method == "slice":
        with pytest.raises(tokenrt.TokenrtError, match=reason):
            tokenrt.reduce(once, method=method, budget=Budget.keep(0.5, [0]))


@SLOW
@pytest.mark.parametrize("axis", [FRAMES, PLACES], ids=["frames", "places"])
@pytest.mark.parametrize("method", [*SELECTIONS, *MERGES])
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_method_equals_torch(exported: Any, method: str, axis: int, opset: int, batch: int) -> None:
    compared(exported(opset, batch), batch, method, axis, **SELECTIONS.get(method, {}))


@SLOW
@pytest.mark.parametrize("axis", [FRAMES, PLACES], ids=["frames", "places"])
@pytest.mark.parametrize("where", ["after-attention", "after-block"])
def test_it_is_checked_and_built(exported: Any, axis: int, where: str, tmp_path: Path) -> None:
    path = exported(20, 2)
    budget = Budget.tokens(COUNTS[axis], [0, 1])
    made = tokenrt.reduce(
        path, method="topk", budget=budget, transformers=[TRANSFORMERS[axis]], site=where,
        options={"score": "received"}, output=tmp_path / "r.onnx",
    )  # fmt: skip
    assert [site.tokens for site in made.plan.sites] == COUNTS[axis]
    assert tokenrt.check(path, tmp_path / "r.onnx", samples=1).ok
    half = tokenrt.convert(tmp_path / "r.onnx", precision="fp16", output=tmp_path / "h.onnx")
    del half
    for target in ("rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"):
        tokenrt.build(tmp_path / "h.onnx", target=target, output=tmp_path / "h.engine")
