"""Ends of a model that people export: one tensor under two names, and a head in an If that reads the tokens from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest
import torch
from torch import Tensor, nn

import tokenrt
from tests.passes.helpers.running import run, session
from tests.zoo.forms import Former
from tokenrt import Budget
from tokenrt.errors import TokenrtError

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporters' own.

KEEP = (13, 9)
NAMES = ["logits", "pooled", "features"]


class Twice(nn.Module):
    """The pooled tokens, once for the head, and twice as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.pooled = Former(), True

    def forward(self, x: Tensor, keep: tuple[int, ...] | None = None) -> Any:
        net, head = self.net, self.net.head
        net.head = nn.Identity()
        pooled = net(x, keep)
        net.head = head
        return head(pooled), pooled, pooled


def made() -> tuple[Twice, Tensor]:
    torch.manual_seed(4)
    return Twice().eval(), torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_one_tensor_under_two_names(exporter: str, tmp_path: Path) -> None:
    net, x = made()
    path = tmp_path / "m.onnx"
    common: dict[str, Any] = {"input_names": ["x"], "output_names": NAMES}
    if exporter == "dynamo":
        common |= {"dynamo": True, "opset_version": 18, "dynamic_shapes": ({0: torch.export.Dim("b")}, None)}
        common["external_data"] = False
    else:
        axes = {name: {0: "b"} for name in ("x", *NAMES)}
        common |= {"dynamo": False, "opset_version": 17, "dynamic_axes": axes}
    with torch.no_grad():
        torch.onnx.export(net, (x, None) if exporter == "dynamo" else (x,), str(path), **common)
        wanted = [value.numpy() for value in net(x, KEEP)]
    reduced = tokenrt.reduce(path, method="slice", budget=Budget.tokens(KEEP)).model
    assert [value.name for value in session(reduced).get_outputs()] == NAMES
    for found, value in zip(run(reduced, {"x": x.numpy()}), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=5e-6)


class Tokens(nn.Module):
    """The tokens behind the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Former()

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.patch(x).flatten(2).transpose(1, 2) + net.position
        for block in net.blocks:
            x = x + block.attended(x)
            x = x + block.rest(x)
        return net.norm(x)


def with_a_head_in_an_if(path: Path) -> None:
    """The mean or the largest of the tokens, as an input says; the branches read the tokens from outside."""
    torch.manual_seed(4)
    axes = {"x": {0: "b"}, "tokens": {0: "b"}}
    torch.onnx.export(
        Tokens().eval(), (torch.randn(2, 3, 64, 64),), str(path), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["tokens"], dynamic_axes=axes,
    )  # fmt: skip
    model = onnx.load(path)
    helper, graph = onnx.helper, model.graph
    pooled = [helper.make_tensor_value_info(name, 1, ["b", 64]) for name in ("mean", "largest", "y")]
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["tokens"], [value.name], axes=[1], keepdims=0)], value.name, [], [value]
        )
        for kind, value in zip(("ReduceMean", "ReduceMax"), pooled, strict=False)
    ]
    choice = helper.make_node(
        "If", ["use_mean"], ["y"], name="head", then_branch=branches[0], else_branch=branches[1]
    )
    graph.node.append(choice)
    graph.input.append(helper.make_tensor_value_info("use_mean", onnx.TensorProto.BOOL, []))
    del graph.output[:]
    graph.output.append(pooled[2])
    onnx.save(model, path)


@pytest.mark.parametrize("method", ["slice", "tome"])
def test_a_head_in_an_if_that_stays(method: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with_a_head_in_an_if(path)
    with pytest.raises(TokenrtError, match=r"If node 'head': .*export the model so") as caught:
        tokenrt.reduce(path, method=method, budget=Budget.remove(2))
    assert "no attention found" not in str(caught.value)
