"""Tokens that never leave, wherever they stand: learned ones behind the patches, those read by position, and those asked for.

The right numbers are those of the torch model with the other tokens cut by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import tokenrt
from tests.passes.helpers.running import close, run
from tests.passes.helpers.streams import traced
from tokenrt.cli import app
from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporter's own.

PATCHES, WIDTH, HEADS = 12, 8, 2
MERGING = ("tome", "pitome", "dpcknn", "evit", "topk", "divprune", "random", "slice")


class Block(nn.Module):
    def __init__(self, tokens: int, bias: bool) -> None:
        super().__init__()
        self.norm, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.bias = nn.Parameter(torch.randn(HEADS, tokens, tokens)) if bias else None

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """places: the positions that `x` holds."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5
        if self.bias is not None:
            scores = scores + self.bias[:, places][:, :, places]
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.mlp(self.second(x))


class Net(nn.Module):
    """Patches between learned tokens in front and behind; `head` says what is read of them."""

    def __init__(self, head: str, front: int = 1, behind: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.front, self.behind = (
            nn.Parameter(torch.randn(1, front, WIDTH)),
            nn.Parameter(torch.randn(1, behind, WIDTH)),
        )
        self.tokens = front + PATCHES + behind
        self.embed, self.position = nn.Linear(5, WIDTH), nn.Parameter(torch.randn(1, self.tokens, WIDTH))
        self.blocks = nn.ModuleList(Block(self.tokens, bias) for _ in range(3))
        self.norm, self.fc, self.box = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 2)
        self.head = head

    def forward(self, x: Tensor, keep: dict[int, Sequence[int]] | None = None) -> Any:
        """keep: block -> the positions that go on behind it, in any order."""
        batch = x.shape[0]
        x = (
            torch.cat([self.front.expand(batch, -1, -1), self.embed(x), self.behind.expand(batch, -1, -1)], 1)
            + self.position
        )
        places = torch.arange(self.tokens)
        held: dict[int, Tensor] = {}  # What each token last was.
        for number, block in enumerate(self.blocks):
            x = block(x, places)
            held.update({int(token): x[:, entry] for entry, token in enumerate(places)} if keep else {})
            if keep and number in keep:
                left = [int(entry) for entry, token in enumerate(places) if int(token) in keep[number]]
                x, places = x[:, left], places[left]
        every = torch.stack([held[token] for token in range(self.tokens)], 1) if keep else x
        return HEAD[self.head](self, self.norm(x), self.norm(every), places)


HEAD = {
    "boxes": lambda net, x, every, places: net.box(every[:, -3:]),
    "boxes and class": lambda net, x, every, places: (net.box(every[:, -3:]), net.fc(every[:, 0])),
    "last": lambda net, x, every, places: net.fc(every[:, -1]),
    "picked": lambda net, x, every, places: net.fc(every[:, torch.tensor([14, 0, 13])]),
    "patches": lambda net, x, every, places: every[:, 1:-3],
    "tokens": lambda net, x, every, places: every,
    "each": lambda net, x, every, places: tuple(every[:, token] for token in range(net.tokens)),
    "mean": lambda net, x, every, places: net.fc(x.mean(1)),
}


def net(head: str, **options: Any) -> Net:
    torch.manual_seed(3)
    made = Net(head, **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.4)
    return made


def exported(made: Net) -> ir.Model:
    inputs = torch.zeros(2, PATCHES, 5)
    with torch.no_grad():
        given = made(inputs)
    names = [f"y{number}" for number in range(len(given) if isinstance(given, tuple) else 1)]
    return ir.from_proto(traced(made, (inputs,), ["x"], names))


def pictures() -> Tensor:
    return torch.randn(3, PATCHES, 5, generator=torch.Generator().manual_seed(8))


def wanted(made: Net, keep: dict[int, Sequence[int]]) -> list[np.ndarray]:
    with torch.no_grad():
        found = made(pictures(), keep)
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


def cut(made: Net, counts: dict[int, int], method: str = "slice", **options: Any) -> Reduced:
    budget = Budget.tokens([*counts.values()], [*counts])
    return reduce(exported(made), method=method, budget=budget, site="after-block", **options)


def ran(result: Reduced) -> list[np.ndarray]:
    return run(result.model, {"x": pictures().numpy()})


BEHIND = (13, 14, 15)


def first(count: int, protected: Sequence[int], tokens: int = 16) -> list[int]:
    """The positions that `slice` keeps: protected ones, then the others from the front."""
    free = [token for token in range(tokens) if token not in protected]
    return sorted([*protected, *free[: count - len(protected)]])


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("head", HEAD)
def test_learned_tokens_behind_the_patches_stay(head: str, bias: bool) -> None:
    made = net(head, bias=bias)
    protected = (0, *BEHIND)
    keep = {0: first(11, protected), 1: first(7, protected)}
    close(ran(cut(made, {0: 11, 1: 7})), wanted(made, keep))


@pytest.mark.parametrize("method", MERGING)
def test_no_method_drops_or_merges_them(method: str) -> None:
    result = cut(net("boxes and class", bias=True), {0: 11, 1: 8}, method, source_map=True)
    for row in ran(result)[-1]:
        own = [*map(int, row)]
        for token in (0, *BEHIND):
            assert own[token] >= 0
            assert own.count(own[token]) == 1
        assert [own[token] for token in (0, *BEHIND)] == [0, 1, 2, 3]


def test_what_leaves_is_told_in_the_order_of_the_model() -> None:
    """Two equal patches are one token, whatever stands behind them."""
    made = net("boxes")
    with torch.no_grad():
        made.position[:, 1:13] = 0
    result = cut(made, {0: 10}, "tome", source_map=True)
    picture = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 1)
    (row,) = run(result.model, {"x": picture.numpy()})[-1]
    assert (row[1:13:2] == row[2:13:2]).all()
    assert len({*map(int, row)}) == 10


def test_a_token_that_depends_on_the_picture_is_protected_where_it_is_read() -> None:
    made = net("last", front=1, behind=0)
    structure = tokenrt.inspect(exported(made)).as_dict()["protected_tokens"]
    assert [(each["first"], each["last"]) for each in structure] == [(0, 0), (12, 12)]
    assert "learned" in structure[0]["why"]
    assert "Gather node" in structure[1]["why"]
    close(ran(cut(made, {0: 6})), wanted(made, {0: first(6, (0, 12), 13)}))


def test_reading_every_token_by_position_protects_none() -> None:
    made = net("each", front=1, behind=0)
    assert tokenrt.inspect(exported(made)).as_dict()["protected"] == 1
    close(ran(cut(made, {0: 6})), wanted(made, {0: first(6, (0,), 13)}))


@pytest.mark.parametrize(
    ("protect", "more"),
    [("5,-4", (5, 12)), ("4:7", (4, 5, 6)), ([2, -1], (2,)), ("8:-3", (8, 9, 10, 11, 12))],
)
def test_the_user_protects_others(protect: str | list[int], more: tuple[int, ...]) -> None:
    made = net("boxes", bias=True)
    protected = sorted({0, *more, *BEHIND})
    result = cut(made, {0: 12, 1: 10}, protect=protect)
    assert result.plan.protect == len(protected)
    close(ran(result), wanted(made, {0: first(12, protected), 1: first(10, protected)}))


def test_a_plan_says_what_the_user_protects(tmp_path: Path) -> None:
    made = net("boxes")
    result = cut(made, {0: 12}, protect="5,-4")
    file = tmp_path / "plan.toml"
    result.plan.save(file)
    assert 'protect = "5,-4"' in file.read_text()
    again = reduce(exported(made), plan=Plan.load(file))
    close(ran(again), ran(result))
    with pytest.raises(PlanError, match="drop protect, or edit the plan"):
        reduce(exported(made), plan=file, protect="1")


@pytest.mark.parametrize(
    ("protect", "message"),
    [
        ("16", "positions must lie among the 16 tokens, 0 to 15"),
        ("-17", "positions must lie among the 16 tokens"),
        ("7:7", "positions must lie among the 16 tokens"),
        ("a", r"--protect a: expected positions and ranges with commas between, as in 0,-1,200:217"),
        ("1,,2", "expected positions and ranges"),
        (":", "all 16 tokens are protected, none can leave"),
    ],
)
def test_what_cannot_be_protected_is_told(protect: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        cut(net("boxes"), {0: 12}, protect=protect)


def test_the_command_line_protects_and_shows_it(tmp_path: Path) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "r.onnx"
    ir.save(exported(net("boxes")), model)
    runner = CliRunner()
    shown = runner.invoke(app, ["inspect", str(model), "--protect", "4:7", "--json"])
    tokens = json.loads(shown.stdout)["protected_tokens"]
    assert [(each["first"], each["last"]) for each in tokens] == [(0, 0), (13, 15), (4, 6)]
    assert tokens[-1]["why"] == "as was asked for (--protect)"
    plain = runner.invoke(app, ["inspect", str(model), "--protect", "4:7"], env={"COLUMNS": "200"})
    assert "protected: tokens 13 to 15: learned: no input reaches it" in plain.stdout
    options = ["--method", "topk", "--remove", "2", "--protect", "4:7", "--json"]
    done = runner.invoke(app, ["reduce", str(model), "-o", str(out), *options])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["plan"]["protect"] == "4:7"
    refused = runner.invoke(app, ["reduce", str(model), "-o", str(out), *options[:4], "--protect", "99"])
    assert refused.exit_code == 2


def prefixed() -> Net:
    """The first 7 tokens see one another, those behind them only what stands before them."""
    made = net("tokens", front=0, behind=0, bias=True)
    shown = torch.ones(PATCHES, PATCHES).tril().bool()
    shown[:, :7] = True
    for block in made.blocks:
        block.bias = nn.Parameter(torch.where(shown, 0.0, -1e9).repeat(HEADS, 1, 1))
    return made


@pytest.mark.parametrize(
    "method", ["slice", "tome", "dpcknn", "topk", "evit", "divprune", "zerotprune", "mctf", "tofu"]
)
def test_behind_a_prefix_a_causal_mask_is_kept_where_the_rest_is_protected(method: str) -> None:
    made = prefixed()
    if method in ("tome", "dpcknn", "mctf"):
        with pytest.raises(
            tokenrt.TokenrtError, match=r"causal behind a prefix of 7 tokens .*: --protect 7:"
        ):
            cut(made, {0: 10}, method)
    elif method == "evit":
        with pytest.raises(tokenrt.UnsupportedError, match="evit gives tokens that are not some of those"):
            cut(made, {0: 10}, method)
    else:
        cut(made, {0: 10}, method)
    result = cut(made, {0: 10, 1: 9}, method, protect="7:")
    if method == "slice":
        keep = {0: first(10, range(7, 12), 12), 1: first(9, range(7, 12), 12)}
        close(ran(result), wanted(made, keep))
    before, later = pictures().numpy(), pictures().numpy()
    later[:, 9:] *= -3
    one, other = (run(result.model, {"x": each})[0] for each in (before, later))
    close([one[:, :9]], [other[:, :9]])
    assert np.abs(one[:, 9:] - other[:, 9:]).max() > 0.1
