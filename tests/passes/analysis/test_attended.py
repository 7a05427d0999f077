"""Which axis counts the tokens is proven by the flow of the data: equal lengths, folded axes and grids lead nobody astray.

The right numbers come from the same weights in torch, with tokens cut by hand behind each attention's residual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tokenrt
from tokenrt import Budget

C, H, KEEP = 32, 4, (14, 12)
D = C // H

Tensor = torch.Tensor


class Attention(nn.Module):
    """Attention over tokens of x [B,N,C], written in the way of `form`; positions and tables are cut with the tokens."""

    def __init__(self, form: str, tokens: int) -> None:
        super().__init__()
        self.form, self.qkv, self.out, self.gate = form, nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(C, C)
        self.register_buffer("where", torch.randn(tokens, C))

    def forward(self, x: Tensor, here: Tensor) -> Tensor:
        rows, count, _ = x.shape
        x = x + self.where[here][None] if self.form == "positions" else x
        split = self.qkv(x).reshape(rows, count, 3, H, D)
        if self.form == "heads first":
            q, k, v = split.permute(2, 3, 0, 1, 4)
            mixed = ((q @ k.transpose(-2, -1)) * D**-0.5).softmax(-1) @ v
            return self.out(mixed.permute(1, 2, 0, 3).reshape(rows, count, C))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        if self.form == "channels":
            weights = (
                nn.functional.normalize(q, dim=-2).transpose(-2, -1) @ nn.functional.normalize(k, dim=-2)
            ).softmax(-1)
            mixed = (weights @ v.transpose(-2, -1)).transpose(-2, -1)
        else:
            mixed = ((q @ k.transpose(-2, -1)) * D**-0.5).softmax(-1) @ v
        result = self.out(mixed.transpose(1, 2).reshape(rows, count, C))
        return result * torch.sigmoid(self.gate(x)) if self.form == "gate" else result


class Net(nn.Module):
    """Two pre-norm blocks over 16 tokens, whose stream lies as `layout` says; a mean over the tokens at the end."""

    def __init__(self, form: str = "plain", layout: str = "rows", tokens: int = 16) -> None:
        super().__init__()
        self.layout, self.tokens = layout, tokens
        self.entry, self.attentions = nn.Linear(8, C), nn.ModuleList(Attention(form, tokens) for _ in KEEP)
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(2 * len(KEEP)))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C)) for _ in KEEP)
        self.head = nn.Linear(C, 5)

    def laid(self, x: Tensor) -> Tensor:
        """[B,N,C] as the stream lies."""
        rows = x.shape[0]
        forms = {
            "rows": lambda: x,
            "sequence": lambda: x.transpose(0, 1),
            "flat": lambda: x.reshape(rows * x.shape[1], C),
            "one picture": lambda: x[0],
            "grid": lambda: x.reshape(rows, *self.grid(x.shape[1]), C),
        }
        return forms[self.layout]()

    def grid(self, count: int) -> tuple[int, int]:
        return (4, 4) if count == 16 else (count, 1)

    def rows(self, x: Tensor, rows: int) -> Tensor:
        if self.layout == "sequence":
            return x.transpose(0, 1)
        return x.reshape(rows, -1, C)

    def forward(self, x: Tensor, keep: tuple[int, ...] | None = None) -> Tensor:
        rows = x.shape[0]
        here = torch.arange(self.tokens)
        x = self.laid(self.entry(x))
        for block, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            normed = self.norms[2 * block](x)
            x = x + self.laid(attention(self.rows(normed, rows), here))
            if keep is not None:
                here = here[: keep[block]]
                x = self.laid(self.rows(x, rows)[:, : keep[block]])
            x = x + mlp(self.norms[2 * block + 1](x))
        return self.head(self.rows(x, rows).mean(1))


def exported(net: nn.Module, given: Tensor, path: Path, *, free: bool = False) -> Path:
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if free else None
    torch.onnx.export(
        net.eval(), (given,), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"], dynamic_axes=axes
    )  # fmt: skip
    return path


def seeded(*arguments: Any, **options: Any) -> Net:
    torch.manual_seed(0)
    return Net(*arguments, **options).eval()


def ran(model: Any, given: Tensor) -> Any:
    import onnx_ir as ir
    import onnxruntime

    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": given.numpy()})[0]


CASES = {
    "batch as long as the tokens": ({}, 16, False),
    "sequence first": ({"layout": "sequence"}, 3, True),
    "sequence first, positions in every block": ({"layout": "sequence", "form": "positions"}, 3, False),
    "flattened": ({"layout": "flat"}, 3, True),
    "flattened, one picture": ({"layout": "flat"}, 1, False),
    "no batch": ({"layout": "one picture"}, 1, False),
    "no batch, positions in every block": ({"layout": "one picture", "form": "positions"}, 1, False),
    "on a grid": ({"layout": "grid"}, 3, True),
    "on a grid, as many pictures as rows": ({"layout": "grid"}, 4, False),
    "gated": ({"form": "gate"}, 3, True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_slice_is_the_model_cut_by_hand(kind: str, tmp_path: Path) -> None:
    options, batch, free = CASES[kind]
    net, given = seeded(**options), torch.randn(batch, 16, 8)
    path = exported(net, given, tmp_path / "m.onnx", free=free)
    found = tokenrt.inspect(path)
    assert [len(found.blocks), found.tokens, {block.heads for block in found.blocks}] == [2, 16, {H}]
    reduced = tokenrt.reduce(path, method="slice", budget=Budget.tokens(KEEP))
    with torch.no_grad():
        np.testing.assert_allclose(ran(reduced.model, given), net(given, KEEP).numpy(), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("method", ["tome", "topk", "dpcknn"])
def test_pictures_choose_for_themselves(kind: str, method: str, tmp_path: Path) -> None:
    options, batch, free = CASES[kind]
    if batch == 1:
        pytest.skip("there is one picture")
    net, given = seeded(**options), torch.randn(batch, 16, 8)
    path = exported(net, given, tmp_path / "m.onnx", free=free)
    reduced = tokenrt.reduce(path, method=method, budget=Budget.remove(3)).model
    others = given.clone()
    others[1:] = torch.randn(batch - 1, 16, 8)
    np.testing.assert_allclose(ran(reduced, others)[0], ran(reduced, given)[0], rtol=0, atol=1e-5)
    order = torch.randperm(batch)
    np.testing.assert_allclose(ran(reduced, given[order]), ran(reduced, given)[order], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_equal_tokens_merge_without_loss(kind: str, tmp_path: Path) -> None:
    options, batch, free = CASES[kind]
    if options.get("form") == "positions":
        pytest.skip("positions tell the tokens apart")
    net, given = seeded(**options), torch.randn(batch, 16, 8)
    given[:, 1::2] = given[:, ::2]
    path = exported(net, given, tmp_path / "m.onnx", free=free)
    reduced = tokenrt.reduce(path, method="tome", budget=Budget.remove(8, layers=[0])).model
    with torch.no_grad():
        np.testing.assert_allclose(ran(reduced, given), net(given).numpy(), rtol=0, atol=5e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "tokens"), [("channels", 8), ("channels", 16)])
def test_attention_over_channels_is_none_over_tokens(form: str, tokens: int, tmp_path: Path) -> None:
    path = exported(seeded(form, tokens=tokens), torch.randn(2, tokens, 8), tmp_path / "m.onnx")
    found = tokenrt.inspect(path)
    assert not found.blocks
    assert len(found.refusals) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [H, 3])
def test_heads_before_pictures_are_refused_by_name(batch: int, tmp_path: Path) -> None:
    path = exported(seeded("heads first"), torch.randn(batch, 16, 8), tmp_path / "m.onnx")
    found = tokenrt.inspect(path)
    assert not found.blocks
    assert all("heads stand before the pictures" in refusal.reason for refusal in found.refusals)


@pytest.mark.filterwarnings("ignore")
def test_with_one_picture_heads_may_stand_anywhere(tmp_path: Path) -> None:
    net, given = seeded("heads first"), torch.randn(1, 16, 8)
    reduced = tokenrt.reduce(
        exported(net, given, tmp_path / "m.onnx"), method="slice", budget=Budget.tokens(KEEP)
    )
    with torch.no_grad():
        np.testing.assert_allclose(ran(reduced.model, given), net(given, KEEP).numpy(), rtol=0, atol=2e-6)


class Turns(nn.Module):
    """Attention over frames and over places in turn, on x [B,T,S,C], then a pool over both."""

    def __init__(self, kinds: str, pool: str) -> None:
        super().__init__()
        self.kinds, self.pool = kinds, pool
        self.entry, self.blocks = nn.Linear(8, C), nn.ModuleList(Attention("plain", 1) for _ in kinds)
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(C) for _ in kinds), nn.Linear(C, 5)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor, cut: tuple[int, int] = (-1, 0)) -> Tensor:
        """cut: behind which attention, and how many of what it runs over are left, the first ones."""
        x = self.entry(x)
        for number, kind in enumerate(self.kinds):
            attention, norm = self.blocks[number], self.norms[number]
            rows = x.transpose(1, 2) if kind == "t" else x
            flat = norm(rows).reshape(-1, rows.shape[2], C)
            mixed = attention(flat, torch.arange(1)).reshape(rows.shape)
            x = x + (mixed.transpose(1, 2) if kind == "t" else mixed)
            if number == cut[0]:
                x = x[:, : cut[1]] if kind == "t" else x[:, :, : cut[1]]
        x = x + self.mlp(x)
        x = x.mean(1).amax(1) if self.pool == "frames first" else x.mean(2).amax(1)
        return self.head(x)


class OneClip(Turns):
    """Of a clip x [T,S,C], whose frames stand where pictures of a batch do."""

    def forward(self, x: Tensor, cut: tuple[int, int] = (-1, 0)) -> Tensor:
        return super().forward(x[None], cut)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sizes", [(6, 9), (6, 6)])
@pytest.mark.parametrize("kinds", ["tsts", "stst"])
def test_axes_in_turn_lose_what_the_other_axis_has_lost_alike(
    kinds: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    net, given = Turns(kinds, "places first").eval(), torch.randn(2, *sizes, 8)
    path = exported(net, given, tmp_path / "m.onnx", free=True)
    found = tokenrt.inspect(path)
    assert [len(each.blocks) for each in found.transformers] == [2, 2]
    assert [each.tokens for each in found.transformers] == [sizes["ts".index(kind)] for kind in kinds[:2]]
    assert not found.refusals
    for number in range(2):
        budget = Budget.tokens([4], [0])
        reduced = tokenrt.reduce(path, method="slice", budget=budget, transformers=[number])
        with torch.no_grad():
            expected = net(given, (number, 4)).numpy()
        np.testing.assert_allclose(ran(reduced.model, given), expected, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_axes_in_turn_are_refused_where_one_of_them_is_the_batch(tmp_path: Path) -> None:
    """What the first axis counts would choose for itself, and attention runs over it."""
    path = exported(OneClip("tsts", "places first"), torch.randn(6, 12, 8), tmp_path / "m.onnx")
    found = tokenrt.inspect(path)
    assert sum(len(each.blocks) for each in found.transformers) <= 1
    assert any("two axes in turn" in refusal.reason for refusal in found.refusals)


@pytest.mark.filterwarnings("ignore")
def test_rows_that_chose_apart_are_whole_again_where_they_meet(tmp_path: Path) -> None:
    """The mean over frames, place by place, comes first: each frame gets all its places back for it."""
    net, given = Turns("ts", "frames first").eval(), torch.randn(2, 6, 9, 8)
    path = exported(net, given, tmp_path / "m.onnx", free=True)
    with torch.no_grad():
        given[:, :, 1::2] = given[:, :, :-1:2]
        reduced = tokenrt.reduce(path, method="tome", budget=Budget.remove(4))
        assert reduced.report.restored
        np.testing.assert_allclose(ran(reduced.model, given), net(given).numpy(), rtol=0, atol=5e-6)
