"""Encoders on a grid [B,H,W,C] whose blocks attend within windows or over everything, with positions by row and by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.published import ToMe
from tests.passes.helpers.running import run
from tests.passes.helpers.streams import plain, seeded, traced
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

CHANNELS, HEADS, SIDE, WINDOW = 16, 2, 6, 3
WIDTH, TOKENS = CHANNELS // HEADS, SIDE * SIDE


class Attention(nn.Module):
    """Over all places of [B,h,w,C]; relative: biases of row and column distance, made of the queries."""

    def __init__(self, side: int, relative: bool) -> None:
        super().__init__()
        self.parts, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.tables = nn.Parameter(torch.randn(2, 2 * side - 1, WIDTH)) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        batch, h, w, _ = x.shape
        split = self.parts(x).reshape(batch, h * w, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = split.reshape(3, batch * HEADS, h * w, WIDTH).unbind(0)
        scores = q * WIDTH**-0.5 @ k.transpose(1, 2)
        if self.tables is not None:
            apart = torch.arange(h)[:, None] - torch.arange(h)[None] + h - 1
            on_grid = q.reshape(batch * HEADS, h, w, WIDTH)
            rows = torch.einsum("bhwc,hkc->bhwk", on_grid, self.tables[0][apart])
            columns = torch.einsum("bhwc,wkc->bhwk", on_grid, self.tables[1][apart])
            scores = scores.view(batch * HEADS, h, w, h, w) + rows[..., None] + columns[:, :, :, None]
            scores = scores.view(batch * HEADS, h * w, h * w)
        made = (scores.softmax(-1) @ v).view(batch, HEADS, h, w, WIDTH)
        result: Tensor = self.out(made.permute(0, 2, 3, 1, 4).reshape(x.shape))
        return result


class Block(nn.Module):
    def __init__(self, window: bool, relative: bool) -> None:
        super().__init__()
        self.window = window
        self.first, self.second = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.own = Attention(WINDOW if window else SIDE, relative)
        self.up, self.down = nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)

    def attended(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if not self.window:
            return x + self.own(h)
        count = SIDE // WINDOW
        cells = h.view(-1, count, WINDOW, count, WINDOW, CHANNELS).transpose(2, 3)
        made = self.own(cells.reshape(-1, WINDOW, WINDOW, CHANNELS))
        back = made.view(-1, count, count, WINDOW, WINDOW, CHANNELS).transpose(2, 3)
        return x + back.reshape(x.shape)

    def fed(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(functional.gelu(self.up(self.second(x))))
        return result

    def rows(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention over tokens [N,C] that have no grid any more, and its queries and keys [H,N,D]."""
        parts = self.own.parts(self.first(x)).reshape(len(x), 3, HEADS, WIDTH).permute(1, 2, 0, 3)
        q, k, v = parts
        weights = (q @ k.transpose(1, 2) * WIDTH**-0.5 + sizes.log()).softmax(-1)
        return x + self.own.out((weights @ v).transpose(0, 1).flatten(1)), q, k


class Encoder(nn.Module):
    """Blocks as `layout` says: w within windows, g over everything; a neck with a convolution over the grid."""

    def __init__(self, layout: str, relative: bool = False) -> None:
        super().__init__()
        self.enter, self.places = (
            nn.Conv2d(3, CHANNELS, 4, 4),
            nn.Parameter(torch.randn(1, SIDE, SIDE, CHANNELS)),
        )
        self.blocks = nn.ModuleList(Block(letter == "w", relative) for letter in layout)
        self.narrow, self.neck = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor, keep: dict[int, int] | None = None, merge: bool = False) -> Tensor:
        """keep: tokens left behind the attention of these blocks of the whole, back before the next window. One picture."""
        x, gone, sizes = self.enter(image).permute(0, 2, 3, 1) + self.places, list[Tensor](), None
        goes = torch.arange(TOKENS)
        for number, block in enumerate(self.blocks):
            if block.window and gone:
                x = torch.cat([x, *reversed(gone)]).reshape(1, SIDE, SIDE, CHANNELS)
                gone, keep = [], None
            if keep is None or number < min(keep):
                x = block.fed(block.attended(x))
                continue
            x = x.reshape(-1, CHANNELS)
            sizes = x.new_ones(len(x)) if sizes is None else sizes
            if block.own.tables is not None:
                assert len(x) == TOKENS
                x = block.attended(x.reshape(1, SIDE, SIDE, CHANNELS)).reshape(-1, CHANNELS)
            else:
                x, q, k = block.rows(x, sizes)
            if number in keep and merge:
                stood = torch.eye(len(x), dtype=x.dtype)
                left, counts, _ = ToMe(len(x) - keep[number], 0)(x, q, k, sizes, number)
                share, _, _ = ToMe(len(x) - keep[number], 0)(stood, q, k, sizes, number)
                goes, x, sizes = (share > 0).int().argmax(0)[goes], left, counts
            elif number in keep:
                gone.append(x[keep[number] :])
                x, sizes = x[: keep[number]], sizes[: keep[number]]
            x = block.fed(x)
        if keep:
            x = torch.cat([x.reshape(-1, CHANNELS), *reversed(gone)])
            x = (x[goes] if merge else x).reshape(1, SIDE, SIDE, CHANNELS)
        result: Tensor = self.neck(self.narrow(x.permute(0, 3, 1, 2)))
        return result


def image() -> Tensor:
    return torch.randn(2, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(6))


def exported(net: nn.Module, *, free: bool = True) -> ir.Model:
    return ir.from_proto(traced(net, (image(),), ["x"], free=free))


def compare(made: ir.Model, net: nn.Module, keep: dict[int, int], *, merge: bool = False) -> None:
    (found,) = run(made, {"x": image().numpy()})
    double, single = (
        plain(net, [image()], kind, keep=keep, merge=merge)[0] for kind in (torch.float64, torch.float32)
    )
    within_twice(found, double, single)


CASES = [("ggg", (0, 1, 2)), ("wgwg", (3,)), ("wgwgg", (3, 4))]


@pytest.mark.parametrize("free", [True, False], ids=["free", "fixed"])
@pytest.mark.parametrize(("layout", "behind"), CASES)
def test_tokens_leave_behind_the_last_window(layout: str, behind: Sequence[int], free: bool) -> None:
    """Dropped or merged, they are on the grid again before the neck; blocks in front of a window are refused by its node."""
    net = seeded(Encoder(layout))
    model = exported(net, free=free)
    found = inspect(model)
    assert [row.tokens for row in found.blocks] == [TOKENS] * len(behind)
    assert found.grid == (SIDE, SIDE)
    counts = [30, 25, 19][: len(behind)]
    keep = dict(zip(behind, counts, strict=True))
    compare(reduce(model, method="slice", budget=Budget.tokens(counts)).model, net, keep)
    if free:
        compare(reduce(model, method="tome", budget=Budget.tokens(counts)).model, net, keep, merge=True)
    early = [refusal.reason for refusal in found.refusals if refusal.where.startswith("block")]
    assert len(early) == layout.count("g") - len(behind)
    for reason in early:
        assert "it splits the token axis into a grid or into windows" in reason
        assert "only blocks behind it take a reduction" in reason
    windows = [r for r in found.refusals if "windows" in r.reason and r.where.startswith("attention")]
    assert len(windows) == layout.count("w")


@pytest.mark.parametrize("layout", ["ggg", "wgwg"])
def test_biases_by_row_and_column_need_the_grid(layout: str) -> None:
    """Their tables are read by row and by column of the query, so all tokens have to be there: only the last block is left."""
    net = seeded(Encoder(layout, relative=True))
    model = exported(net)
    found = inspect(model)
    # Behind the block all tokens are read.
    assert [row.sites for row in found.blocks] == [("after-attention",)]
    early = [refusal.reason for refusal in found.refusals if refusal.where.startswith("block")]
    assert len(early) == layout.count("g") - 1
    for reason in early:
        assert f"'/own_{len(layout) - 1}/Einsum" in reason, (
            "the last node that reads the grid, by the model's own name"
        )
        assert "it parts the rows of the token grid from its columns" in reason
    last = len(layout) - 1
    compare(reduce(model, method="slice", budget=Budget.tokens([20])).model, net, {last: 20})


def test_tokens_come_back_before_the_window_behind_the_last_block() -> None:
    """The window lies behind the last block that attends to everything: all tokens are there again in front of it."""
    net = seeded(Encoder("gwgw"))
    model = exported(net)
    found = inspect(model)
    assert len(found.blocks) == 1
    assert sum(refusal.where.startswith("block") for refusal in found.refusals) == 1
    made = reduce(model, method="slice", budget=Budget.tokens([20]))
    assert any("blocks.3" in line or "_3" in line for line in made.report.restored)
    compare(made.model, net, {2: 20})


class Both(Encoder):
    """The neck, which needs the grid, and beside it the mean over the grid, which counts the tokens that are left."""

    def forward(self, image: Tensor, keep: dict[int, int] | None = None, merge: bool = False) -> Any:
        x, gone = self.enter(image).permute(0, 2, 3, 1) + self.places, list[Tensor]()
        for number, block in enumerate(self.blocks):
            x = block.attended(x)
            if keep and number in keep:
                x = x.reshape(1, -1, 1, CHANNELS)
                gone.append(x[:, keep[number] :])
                x = x[:, : keep[number]]
            x = block.fed(x)
        mean = x.mean((1, 2))
        x = torch.cat([x, *reversed(gone)], dim=1).reshape(-1, SIDE, SIDE, CHANNELS)
        return self.neck(self.narrow(x.permute(0, 3, 1, 2))), mean


def test_a_pool_and_a_convolution_over_one_grid() -> None:
    net = seeded(Both("ggg"))
    model, keep = ir.from_proto(traced(net, (image(),), ["x"], ["y", "mean"])), {0: 30, 2: 20}
    made = reduce(model, method="slice", budget=Budget.tokens([*keep.values()], [*keep])).model
    found = run(made, {"x": image().numpy()})
    double, single = (plain(net, [image()], kind, keep=keep) for kind in (torch.float64, torch.float32))
    for each in zip(found, double, single, strict=True):
        within_twice(*each)
