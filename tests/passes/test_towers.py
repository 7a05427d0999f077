"""Two transformers in one graph that are no levels of a U-Net: two towers side by side, and an encoder with a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.probes import Pairs, registered
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import close, run, session
from tests.passes.helpers.streams import (
    CONTEXT,
    WIDTH,
    Attention,
    Block,
    Plan,
    Walk,
    plain,
    seeded,
)
from tokenrt.passes.analysis.protected import LAST
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

PICTURE, TEXT = 17, 10
"""Tokens of each stream, the first of the picture's a class token."""


def body(
    blocks: nn.ModuleList,
    x: Tensor,
    walk: Walk | None,
    context: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    for number, block in enumerate(blocks):
        x = block(x, context, walk, number, sizes)
    return x


def walks(reduced: Plan | None, methods: Any) -> list[Walk | None]:
    if reduced is None:
        return [None, None]
    return [Walk(methods[t], False, {b: k for (s, b), k in reduced.items() if s == t}) for t in range(2)]


class Towers(nn.Module):
    """The class token of pictures beside the mean token of texts, each by its own tower."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(12, WIDTH)
        self.words = nn.Embedding(20, WIDTH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.picture, self.text = (nn.ModuleList(Block() for _ in range(2)) for _ in range(2))

    def forward(
        self, patches: Tensor, ids: Tensor, methods: Any = None, reduced: Plan | None = None
    ) -> tuple[Tensor, Tensor]:
        seeing, reading = walks(reduced, methods)
        x = self.enter(patches)
        x = body(self.picture, torch.cat([self.first.expand(x.shape[0], 1, WIDTH), x], dim=1), seeing)
        y = body(self.text, self.words(ids), reading)
        if reading is None:
            return x[:, 0], y.mean(dim=1)
        weight = reading.line.sizes if len(reading.line.sizes) else y.new_ones(y.shape[1])
        return x[:, 0], (y[0] * weight[:, None]).sum(dim=0)[None] / weight.sum()


class Translator(nn.Module):
    """A decoder of one stream that reads what an encoder made of another; `table`: with a bias per pair of tokens."""

    def __init__(self, *, table: bool = False) -> None:
        super().__init__()
        self.enter, self.words = nn.Linear(12, WIDTH), nn.Linear(CONTEXT, WIDTH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.encoder = nn.ModuleList(Block() for _ in range(2))
        self.decoder = nn.ModuleList(Block(WIDTH) for _ in range(2))
        for block in self.decoder if table else ():
            block.table = nn.Parameter(torch.linspace(-1, 1, TEXT * PICTURE).reshape(1, 1, TEXT, PICTURE))

    def forward(
        self, patches: Tensor, text: Tensor, methods: Any = None, reduced: Plan | None = None
    ) -> Tensor:
        seeing, reading = walks(reduced, methods)
        x = self.enter(patches)
        x = body(self.encoder, torch.cat([self.first.expand(x.shape[0], 1, WIDTH), x], dim=1), seeing)
        sizes = None if seeing is None else seeing.line.sizes
        y = body(self.decoder, self.words(text), reading, x, sizes)
        return y if reading is None else reading.back(y)


@pytest.fixture(autouse=True, scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with registered(tmp_path_factory.mktemp("probes")) as module:
        yield module


def inputs(kind: str, first: int = 2, second: int = 2) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    patches = torch.randn(first, PICTURE - 1, 12, generator=made)
    if kind == "towers":
        return patches, torch.randint(0, 20, (second, TEXT), generator=made)
    return patches, torch.randn(second, TEXT, CONTEXT, generator=made)


def feeds(kind: str, first: int = 2, second: int = 2) -> dict[str, Any]:
    return dict(zip(("a", "b"), (value.numpy() for value in inputs(kind, first, second)), strict=True))


def exported(net: nn.Module, kind: str, file: Path) -> Path:
    outputs = ["u", "v"] if kind == "towers" else ["u"]
    free = ("first", "second") if kind == "towers" else ("batch", "batch")
    axes = {name: {0: axis} for name, axis in zip(("a", "b"), free, strict=True)}
    axes |= {name: {0: axis} for name, axis in zip(outputs, free, strict=False)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            inputs(kind),
            str(file),
            dynamo=False,
            opset_version=17,
            input_names=["a", "b"],
            output_names=outputs,
            dynamic_axes=axes,
        )
    return file


NETS = {"towers": Towers, "translator": Translator}


@pytest.fixture(scope="module", params=[*NETS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    net = seeded(NETS[request.param]())
    return request.param, net, exported(net, request.param, tmp_path_factory.mktemp("two") / "model.onnx")


def test_both_are_found(case: tuple[str, Any, Path]) -> None:
    kind, _, path = case
    found = inspect(path)
    assert {(each.tokens, each.protected, len(each.blocks)) for each in found.transformers} == {
        (PICTURE, 1, 2),
        (TEXT, 0, 2),
    }
    assert len(found.refusals) == (0 if kind == "towers" else 2)


@pytest.mark.parametrize("which", [None, [1], "all"], ids=str)
def test_each_is_reduced_for_itself(case: tuple[str, Any, Path], which: Any) -> None:
    """By default the first; merged keys of the encoder count by their size in the decoder's cross-attention."""
    kind, net, path = case
    made = reduce(path, method="pairs_stay", budget=Budget.remove(3), transformers=which)
    chosen = which if isinstance(which, list) else {None: [0], "all": [0, 1]}[which]
    number = {each.tokens: place for place, each in enumerate(made.plan.transformers)}
    streams = [stream for stream, tokens in enumerate((PICTURE, TEXT)) if number[tokens] in chosen]
    counts = {(0, 0): 14, (0, 1): 11, (1, 0): 7, (1, 1): 4}
    reduced = {key: keep for key, keep in counts.items() if key[0] in streams}
    planned = {(site.transformer, site.block): site.tokens for site in made.plan.sites}
    assert planned == {(number[(PICTURE, TEXT)[s]], b): keep for (s, b), keep in reduced.items()}
    how = {"methods": (Pairs(1), Pairs(0)), "reduced": reduced}
    double, single = (plain(net, inputs(kind), kind_, **how) for kind_ in (torch.float64, torch.float32))
    for found, exact, same in zip(run(session(made.model), feeds(kind)), double, single, strict=True):
        within_twice(found, exact, same)


def test_removing_nothing_changes_nothing(case: tuple[str, Any, Path]) -> None:
    kind, _, path = case
    made = reduce(path, method="tome", budget=Budget.remove(0), transformers="all", allow_noop=True)
    close(run(session(made.model), feeds(kind)), run(path, feeds(kind)))


def test_each_tower_has_a_batch_of_its_own(tmp_path: Path) -> None:
    path = exported(seeded(Towers()), "towers", tmp_path / "model.onnx")
    made = reduce(path, method="tome", budget=Budget.remove(2), transformers="all", source_map=True)
    one, two = (run(session(made.model), feeds("towers", *batch)) for batch in ((3, 3), (3, 1)))
    assert [value.shape for value in two[:2]] == [(3, WIDTH), (1, WIDTH)]
    assert sorted(value.shape for value in two[2:]) == [(1, TEXT), (3, PICTURE)]
    close([two[0]], [one[0]])
    assert all(int(value.max()) == value.shape[1] - 5 for value in two[2:])


def test_two_that_share_a_table_are_not_reduced_together(tmp_path: Path) -> None:
    path = exported(seeded(Translator(table=True)), "translator", tmp_path / "model.onnx")
    how: dict[str, Any] = {"method": "tome", "budget": Budget.remove(2), "output": tmp_path / "r.onnx"}
    refused_call(
        tmp_path,
        r"transformers 0 and 1 cannot be reduced together: Add node '.+' has to be changed for both; choose one",
        lambda: reduce(path, transformers="all", **how),
    )
    for which in (0, 1):
        made = reduce(path, transformers=[which], method="tome", budget=Budget.remove(2))
        (found,) = run(session(made.model), feeds("translator"))
        assert np.isfinite(found).all()


class Read(Towers):
    """The text tower hides later tokens from earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Attention(WIDTH)
        self.register_buffer("mask", torch.full((TEXT, TEXT), -1e9).triu(1)[None, None])

    def forward(self, patches: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.enter(patches)
        x = body(self.picture, torch.cat([self.first.expand(x.shape[0], 1, WIDTH), x], dim=1), None)
        y = self.words(ids)
        return x[:, 0], (y + self.own(y, y, None, self.mask)).mean(dim=1)


def test_a_causal_tower_is_told_by_name(tmp_path: Path) -> None:
    path = exported(seeded(Read()), "towers", tmp_path / "model.onnx")
    found = inspect(path)
    assert [each.tokens for each in found.transformers] == [TEXT, PICTURE]
    assert [str(guard) for guard in found.transformers[0].guards] == [f"token {TEXT - 1}: {LAST}"]
    assert len(found.refusals) == 1
    assert "its mask is causal" in found.refusals[0].reason
    assert reduce(path, method="tome", budget=Budget.remove(2)).plan.reduced() == [1]
