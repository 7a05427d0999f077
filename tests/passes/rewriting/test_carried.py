"""Tokens that left come back as what the others have become; a pool counts those that are left, whatever stands beside.

The right numbers are those of the torch model with tokens cut by hand: `x[:, :keep]` behind a block, and what was cut
taken along the trunk, per token, to where it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run
from tests.passes.helpers.streams import traced
from tokenrt.errors import UnsupportedError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporter's own.

TOKENS, WIDTH, HEADS = 16, 16, 2
METHODS = ("slice", "topk", "evit", "tome")


class PlainNorm(nn.Module):
    """A LayerNorm written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        return away / torch.sqrt((away**2).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Block(nn.Module):
    """Norms in front of the branches ("pre"), behind the additions ("post"), or behind and written out ("plain")."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        kind = PlainNorm if norm == "plain" else nn.LayerNorm
        self.pre, self.n1, self.n2 = norm == "pre", kind(width), kind(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * 0.4).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attention(self.n1(x))
            return x + self.mlp(self.n2(x))
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.mlp(x))

    def trunk(self, x: Tensor) -> Tensor:
        """A token that takes no part."""
        return x if self.pre else self.n2(self.n1(x))


class Net(nn.Module):
    """Two groups of two blocks with something per token between; what lies behind them is `head`."""

    def __init__(self, head: str, norm: str = "pre", wide: int = WIDTH, between: str = "") -> None:
        super().__init__()
        self.first = nn.ModuleList(Block(WIDTH, norm) for _ in range(2))
        self.between: nn.Module = {
            "": nn.Identity(),
            "linear": nn.Linear(WIDTH, wide),
            "mlp": nn.Sequential(nn.Linear(WIDTH, wide), nn.GELU(), nn.LayerNorm(wide)),
        }[between]
        self.second = nn.ModuleList(Block(wide, norm) for _ in range(2))
        self.norm, self.fc, self.weigh = nn.LayerNorm(wide), nn.Linear(wide, 5), nn.Linear(wide, 1)
        self.flat, self.mix = nn.Linear(TOKENS * wide, 5), nn.Linear(TOKENS, 3)
        self.head = head

    def forward(self, x: Tensor, cuts: Mapping[int, int] | None = None) -> Any:
        """cuts: block -> tokens that go on behind it."""
        gone: list[Tensor] = []
        states = []
        number = 0
        for group, behind in ((self.first, self.between), (self.second, nn.Identity())):
            for block in group:
                x, gone = block(x), [block.trunk(each) for each in gone]
                states.append(torch.cat([x, *gone], 1))
                if cuts and number in cuts:
                    x, gone = x[:, : cuts[number]], [x[:, cuts[number] :], *gone]
                number += 1
            x, gone = behind(x), [behind(each) for each in gone]
        return HEAD[self.head](self, self.norm(x), self.norm(torch.cat([x, *gone], 1)), states)


def grid(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[-1], 4, 4)


HEAD: dict[str, Callable[[Net, Tensor, Tensor, list[Tensor]], Any]] = {
    "tokens": lambda net, left, every, states: every,
    "tokens and states": lambda net, left, every, states: (every, *states),
    "mean": lambda net, left, every, states: net.fc(left.mean(1)),
    "mean and tokens": lambda net, left, every, states: (net.fc(left.mean(1)), every),
    "maximum and tokens": lambda net, left, every, states: (net.fc(left.amax(1)), every),
    "mean and projected": lambda net, left, every, states: (net.fc(left.mean(1)), net.weigh(every)),
    "away from the mean": lambda net, left, every, states: every - left.mean(1, keepdim=True),
    "flatten": lambda net, left, every, states: net.flat(every.flatten(1)),
    "softmax": lambda net, left, every, states: net.fc((net.weigh(every).softmax(1) * every).sum(1)),
    "softmax beside a mean": lambda net, left, every, states: (
        net.fc((net.weigh(every).softmax(1) * every).sum(1)),
        net.fc(left.mean(1)),
    ),
    "logsumexp": lambda net, left, every, states: net.fc(every.logsumexp(1)),
    "gram": lambda net, left, every, states: net.fc(every.transpose(1, 2) @ every),
    "mixing": lambda net, left, every, states: net.mix(every.transpose(1, 2)),
    "mask": lambda net, left, every, states: net.fc(net.mix.weight[:1] @ every),
}
POOLED = {
    # What the exporter is given, where a mean is written otherwise than `left.mean(1)`: left is all tokens there.
    "grid": lambda net, left, every, states: net.fc(grid(left).mean((2, 3))),
    "grid last": lambda net, left, every, states: net.fc(
        left.reshape(-1, 4, 4, left.shape[-1]).permute(0, 3, 1, 2).mean((-1, -2))
    ),
    "grid global": lambda net, left, every, states: net.fc(
        nn.functional.adaptive_avg_pool2d(grid(left), 1).flatten(1)
    ),
    "grid in rows": lambda net, left, every, states: net.fc(
        left.reshape(-1, 4, 4, left.shape[-1]).mean((1, 2))
    ),
    "line": lambda net, left, every, states: net.fc(
        nn.functional.adaptive_avg_pool1d(left.transpose(1, 2), 1).flatten(1)
    ),
    "line and tokens": lambda net, left, every, states: (
        net.fc(nn.functional.adaptive_avg_pool1d(left.transpose(1, 2), 1).flatten(1)),
        every,
    ),
    "grid and tokens": lambda net, left, every, states: (net.fc(grid(left).mean((2, 3))), every),
}
HEAD |= POOLED


def made(head: str, **options: Any) -> Net:
    torch.manual_seed(5)
    net = Net(head, **options).eval()
    for parameter in net.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=float(1.3 / np.sqrt(parameter.shape[1])))
        else:
            nn.init.uniform_(parameter, 0.6, 1.4)
    return net


def exported(net: Net) -> onnx.ModelProto:
    with torch.no_grad():
        count = len(outputs(net(torch.zeros(1, TOKENS, WIDTH))))
    return traced(net, (torch.zeros(2, TOKENS, WIDTH),), ["x"], [f"y{number}" for number in range(count)])


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def picture() -> Tensor:
    return torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))


def by_hand(net: Net, cuts: Mapping[int, int]) -> list[np.ndarray]:
    with torch.no_grad():
        return [output.numpy() for output in outputs(net(picture(), cuts))]


def cut(net: Net, cuts: Mapping[int, int], method: str = "slice", **options: Any) -> Reduced:
    budget = Budget.tokens([*cuts.values()], [*cuts])
    return reduce(ir.from_proto(exported(net)), method=method, budget=budget, site="after-block", **options)


def ran(result: Reduced) -> list[np.ndarray]:
    return run(result.model, {"x": picture().numpy()})


ONCE, TWICE = {0: 11}, {0: 12, 2: 7}
BETWEEN = {
    "pre": {},
    "post": {"norm": "post"},
    "plain": {"norm": "plain"},
    "linear": {"between": "linear"},
    "narrow": {"between": "linear", "wide": 8},
    "mlp": {"between": "mlp", "wide": 24},
    "post-mlp": {"norm": "post", "between": "mlp", "wide": 8},
}


@pytest.mark.parametrize("form", BETWEEN)
def test_what_comes_back_passed_what_the_others_passed(form: str) -> None:
    net = made("tokens and states", **BETWEEN[form])
    close(ran(cut(net, TWICE)), by_hand(net, TWICE))


@pytest.mark.parametrize("head", [head for head in HEAD if head not in POOLED and "tokens" not in head])
def test_a_head_gives_what_it_gives_by_hand(head: str) -> None:
    """A pool counts those that are left; whatever has no rule, or needs every place, has all tokens back."""
    net = made(head)
    close(ran(cut(net, TWICE)), by_hand(net, TWICE))


@pytest.mark.parametrize("head", [*POOLED, "maximum and tokens"])
def test_a_pool_counts_those_that_are_left_however_it_is_written(head: str) -> None:
    """As cut by hand: the head of the exported model sees all tokens, that of the other those that are left."""
    net = made(head)
    wanted = by_hand(made(head if "maximum" in head else "mean and tokens"), ONCE)
    found = ran(cut(net, ONCE))
    close(found, wanted[: len(found)])


@pytest.mark.parametrize("method", ["topk", "evit", "tome"])
def test_a_pool_and_the_tokens_beside_it_are_what_each_is_alone(method: str) -> None:
    alone = [*ran(cut(made("grid"), ONCE, method)), *ran(cut(made("tokens"), ONCE, method))]
    close(ran(cut(made("grid and tokens"), ONCE, method)), alone)
    close(ran(cut(made("mean and tokens"), ONCE, method)), alone)


def test_the_report_says_what_a_pool_counts() -> None:
    for head, pools in (("mean and tokens", 1), ("grid", 1), ("softmax", 0), ("softmax beside a mean", 1)):
        report = cut(made(head), ONCE).report
        assert len(report.pools) == pools, report.pools
        assert all("the tokens that are left, each counted by its size" in line for line in report.pools)


def test_nothing_is_written_again_where_nothing_lies_between() -> None:
    """Norms in front of the branches: one node more than the model has, but for the restoring itself."""
    result = cut(made("tokens"), ONCE)
    assert not [node.name for node in result.model.graph if "again" in str(node.outputs[0].name)]


GATE = """
  b0_mean = ReduceMean <axes = [1]> (b0_out)
  b0_gate = Sigmoid (b0_mean)
  b1_in = Mul (b0_out, b0_gate)
"""
SIDE = """
  side_kt = Transpose <perm = [0, 2, 1]> (b0_out)
  side_pairs = MatMul (b0_out, side_kt)
  side_soft = Softmax <axis = -1> (side_pairs)
  b1_in = MatMul (side_soft, b0_out)
"""


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (GATE, "Mul node .*: its input 1 is made of other tokens; reduce only behind that node .*merge"),
        (SIDE, "MatMul node .*: it mixes tokens with one another"),
    ],
    ids=["gate", "attention"],
)
def test_what_cannot_be_done_to_a_token_alone_is_refused_by_name(between: str, message: str) -> None:
    model = tiny.model(tiny.EVERY, output="float[B,6,8] y", between=between)
    with pytest.raises(UnsupportedError, match=message):
        reduce(ir.from_proto(model), method="slice", budget=Budget.tokens([4], [0]))
    # Behind the node it can be done, and merged tokens come back as copies anywhere.
    reduce(ir.from_proto(model), method="slice", budget=Budget.tokens([4], [1]))
    reduce(ir.from_proto(model), method="tome", budget=Budget.tokens([4], [0]))


PLACES = "  b1_in = Add (b0_out, places)\n"


def test_what_holds_one_entry_per_token_is_added_to_its_own_token() -> None:
    """Positions added between the blocks: those that left in front of them get theirs."""
    model = tiny.model("", output="float[B,6,4] b1_out", between=PLACES)
    given = tiny.picture()
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.append(onnx.ValueInfoProto(name="b0_out"))
    (_, before) = run(whole, given)
    result = reduce(ir.from_proto(model), method="slice", budget=Budget.tokens([4], [0]), site="after-block")
    (found,) = run(result.model, given)
    close([found[:, 4:]], [before[:, 4:] + tiny.weights()["places"][:, 4:]])
