"""Text and image that attend to one another, each with weights of its own (SD3, Flux): tokens of the image leave, text stays."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.denoisers import SIDE, TEXT, TOKENS, WIDTH, First, Joint, exported, given
from tests.passes.helpers.probes import Pairs, registered
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import attended, run, session
from tests.passes.helpers.streams import Cells, Soft, Tome, Topk, plain, seeded
from tokenrt.passes.checking.check import check
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.targets.build import build

CELLS = Cells({TOKENS: (SIDE, SIDE)})
SOFT = Soft((SIDE, SIDE), (2, SIDE))
CASES = pytest.mark.parametrize(
    ("text_first", "dynamo"),
    [
        pytest.param(False, 0, id="image-first-torchscript"),
        pytest.param(True, 23, id="text-first-23"),
        *(pytest.param(order, form, marks=pytest.mark.slow) for order, form in ((True, 0), (False, 23))),
        *(pytest.param(order, 20, marks=pytest.mark.slow) for order in (False, True)),
    ],
)


@functools.cache
def net(text_first: bool, single: int) -> Joint:
    torch.manual_seed(0)
    found = seeded(Joint(single, text_first))
    assert isinstance(found, Joint)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The exported model of an order, a form and a number of single blocks, each made once."""
    folder = tmp_path_factory.mktemp("joint")

    @functools.cache
    def made(text_first: bool, dynamo: int, single: int = 0) -> Path:
        path = folder / f"{text_first}{dynamo}{single}.onnx"
        return exported(net(text_first, single), path, free=not dynamo, dynamo=dynamo)

    return made


@pytest.fixture(scope="module", autouse=True)
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("probes")):
        yield


def compare(made: Any, model: nn.Module, **how: Any) -> None:
    """Within twice the error of plain torch in float32."""
    inputs = given(model)
    (found,) = run(session(made.model), {name: value.numpy() for name, value in inputs.items()})
    double, single = (
        plain(model, inputs.values(), kind, **how)[0] for kind in (torch.float64, torch.float32)
    )
    within_twice(found, double, single)


@CASES
def test_the_image_is_the_stream(text_first: bool, dynamo: int, files: Any) -> None:
    found = inspect(files(text_first, dynamo))
    assert (found.tokens, found.grid, found.protected) == (TOKENS, (SIDE, SIDE), 0)
    every = ("around-attention", "after-attention", "after-block")
    assert [row.sites for row in found.blocks] == [every, every[:2]]  # Behind the last block all are read
    assert not found.refusals


@CASES
def test_merged_around_their_attention(text_first: bool, dynamo: int, files: Any) -> None:
    """Queries, keys and values are those of the text and of what is left; the text's part of the result is its own."""
    keep = {(0, 0): 10, (0, 1): 8}
    made = reduce(files(text_first, dynamo), method="tomesd", budget=Budget.tokens([10, 8], [0, 1]))
    compare(made, net(text_first, 0), plan=keep, method=CELLS)
    inputs = {name: value.numpy() for name, value in given(net(text_first, 0)).items()}
    assert attended(made.model, inputs) == [10 + TEXT, 8 + TEXT]


@CASES
@pytest.mark.parametrize("kind", ["slice", "pairs_stay"])
def test_tokens_that_leave_for_good(kind: str, text_first: bool, dynamo: int, files: Any) -> None:
    """Rotary positions of what is left stand beside those of the text, and a merged key counts its members."""
    made = reduce(files(text_first, dynamo), method=kind, budget=Budget.tokens([12, 9], [0, 1]))
    method = First() if kind == "slice" else Pairs(0)
    compare(made, net(text_first, 0), plan={(0, 0): 12, (0, 1): 9}, method=method, around=False)


@pytest.mark.parametrize(
    "dynamo", [0, pytest.param(20, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.slow)]
)
def test_blocks_of_two_streams_and_of_one(dynamo: int, files: Any) -> None:
    """As in Flux: text in front is protected where both are one stream, since the end takes the picture alone."""
    path, model = files(True, dynamo, 2), net(True, 2)
    found = inspect(path)
    assert [(each.tokens, each.protected, len(each.blocks)) for each in found.transformers] == [
        (TOKENS, 0, 2),
        (TOKENS + TEXT, TEXT, 2),
    ]
    made = reduce(path, method="tomesd", budget=Budget.keep(0.5, [0, 1]), grid=(SIDE, SIDE))
    left = {(site.transformer, site.block): site.tokens for site in made.plan.sites}
    assert left == {(0, 0): 8, (0, 1): 8, (1, 0): 8 + TEXT, (1, 1): 8 + TEXT}
    compare(made, model, plan=left, method=CELLS)
    made = reduce(path, method="slice", budget=Budget.tokens([15, 9], [0, 1]), transformers=[1])
    compare(made, model, plan={(1, 0): 15, (1, 1): 9}, method=First(), around=False)


@pytest.mark.parametrize(
    ("name", "method", "keep", "options"),
    [
        pytest.param("tome", Tome(), [12, 9], {}, id="tome"),
        pytest.param("topk", Topk(by_key=True), [12, 9], {"score": "key_norm"}, id="topk"),
        pytest.param("expedit", SOFT, [8], SOFT.options, id="expedit"),
    ],
)
@pytest.mark.parametrize(
    ("text_first", "dynamo", "single"),
    [
        pytest.param(True, 23, 0, id="text-first-23"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((False, 0, 0), (False, 20, 0), (True, 20, 2), (True, 0, 2))
        ),
    ],
)
def test_published_methods_beside_text(
    text_first: bool,
    dynamo: int,
    single: int,
    name: str,
    method: Any,
    keep: list[int],
    options: Any,
    files: Any,
) -> None:
    """Keys are compared behind their rotary positions, and what is left stands where its pairs or clusters do."""
    made = reduce(
        files(text_first, dynamo, single),
        method=name,
        budget=Budget.tokens(keep, [*range(len(keep))]),
        options=options,
        transformers=[0],
    )
    assert {site.where for site in made.plan.sites} == {"after-attention"}
    left = {(0, block): count for block, count in enumerate(keep)}
    compare(made, net(text_first, single), plan=left, method=method, around=False)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [0, 20, 23])
@pytest.mark.parametrize(
    ("name", "method", "keep", "options"),
    [
        ("tome", Tome(TEXT), [15, 13], {}),
        ("topk", Topk(), [15, 9], {}),
        ("topk", Topk(by_key=True), [15, 9], {"score": "key_norm"}),
        ("expedit", SOFT, [8 + TEXT], SOFT.options),
    ],
    ids=["tome", "topk-received", "topk-keys", "expedit"],
)
def test_published_methods_where_both_are_one_stream(
    name: str, method: Any, keep: list[int], options: Any, dynamo: int, files: Any
) -> None:
    """Protected text gives attention, and shifts which positions are even."""
    made = reduce(
        files(True, dynamo, 2),
        method=name,
        budget=Budget.tokens(keep, [*range(len(keep))]),
        options=options,
        transformers=[1],
        grid=(SIDE, SIDE),
    )
    left = {(1, block): count for block, count in enumerate(keep)}
    compare(made, net(True, 2), plan=left, method=method, around=False)


def test_scores_over_both_are_not_read(files: Any, tmp_path: Path) -> None:
    refused_call(
        tmp_path,
        "runs over the tokens of another stream too, and the method reads its scores",
        lambda: reduce(
            files(True, 20), method="topk", budget=Budget.tokens([9], [0]), output=tmp_path / "r.onnx"
        ),
    )
    made = reduce(
        files(True, 20), method="topk", budget=Budget.tokens([9], [0]), options={"score": "key_norm"}
    )
    assert made.plan.sites[0].tokens == 9


def test_a_step_goes_on_with_its_own_state(files: Any, tmp_path: Path) -> None:
    """What rests beside text: with the state of the same latent a step that computes half is the whole step to the last bit."""
    reduce(files(False, 0), method="ras", budget=Budget.tokens([8]), output=tmp_path / "r.onnx")
    whole, resting = session(tmp_path / "r.dense.onnx"), session(tmp_path / "r.onnx")
    inputs = {name: value.numpy() for name, value in given(net(False, 0)).items()}
    first = dict(zip([value.name for value in whole.get_outputs()], run(whole, inputs), strict=True))
    state = {f"past_{name[8:]}": value for name, value in first.items() if name.startswith("present_")}
    again = run(resting, {**inputs, **state, "update": inputs["latent"]})
    for value, found in zip(resting.get_outputs(), again, strict=True):
        if value.name != "present_rested":
            np.testing.assert_allclose(found, first[value.name], atol=1e-6)
    assert (
        dict(zip([v.name for v in resting.get_outputs()], again, strict=True))["present_rested"].sum(1) == 8
    ).all()


def test_a_span_ends_with_the_last_token(files: Any) -> None:
    span = f"{TEXT}:{TEXT + TOKENS}"
    made = reduce(
        files(True, 0, 2), method="slice", budget=Budget.tokens([9], [0]), transformers=[1], span=span
    )
    assert (made.plan.transformers[1].protect, made.plan.sites[0].tokens) == (TEXT, 9)


class Masked(Joint):
    """A joint attention under a mask of both streams."""

    def forward(self, latent: Any, timestep: Any, text: Any, *_: Any, **__: Any) -> Any:
        own, other = self.image[0], self.text[0]
        x = self.enter(latent).flatten(2).transpose(1, 2)
        q, k, v = (
            torch.cat([one(text), two(x)], dim=1).unflatten(2, (2, -1)).transpose(1, 2)
            for one, two in zip(
                (other.query, other.key, other.value), (own.query, own.key, own.value), strict=True
            )
        )
        mask = torch.zeros(1, 1, TEXT + TOKENS, TEXT + TOKENS)
        mask[..., TEXT:, :TEXT] = -1e4
        mixed = (
            ((q @ k.transpose(2, 3) + mask).softmax(-1) @ v).transpose(1, 2).reshape(-1, TEXT + TOKENS, WIDTH)
        )
        return (
            self.leave(x + own.out(mixed[:, TEXT:]))
            + (text + other.out(mixed[:, :TEXT])).mean(1, True)[..., :4]
        )


def test_a_mask_over_both_is_refused_by_name(tmp_path: Path) -> None:
    path = exported(seeded(Masked()), tmp_path / "masked.onnx")
    (refusal,) = [each for each in inspect(path).refusals if "attention at" in each.where]
    assert "joint attention: Concat node" in refusal.reason
    refused_call(
        tmp_path,
        "no transformer block can be reduced(.|\n)*joint attention: Concat node",
        lambda: reduce(path, method="tomesd", budget=Budget.remove(4), output=tmp_path / "r.onnx"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rtx-sm80", "rtx-sm89", "rtx-sm120"])
def test_halves_build(target: str, files: Any, tmp_path: Path) -> None:
    from tokenrt.passes.forms.convert import convert

    path = files(False, 23)
    reduce(path, method="tomesd", budget=Budget.keep(0.5, [0, 1]), output=tmp_path / "r.onnx")
    assert check(path, tmp_path / "r.onnx", samples=1).ok
    convert(tmp_path / "r.onnx", precision="fp16", output=tmp_path / "half.onnx")
    build(tmp_path / "half.onnx", target=target, output=tmp_path / "r.engine")
    assert (tmp_path / "r.engine").stat().st_size > 0
