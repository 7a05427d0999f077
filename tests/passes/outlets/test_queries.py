"""Resamplers keep the first of their learned queries: what torch says that slices them, and every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.passes.helpers import resamplers
from tests.passes.helpers.projectors import SIDE, tower
from tests.passes.helpers.running import close, run
from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

READING = ("published", "perceiver")


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("free", [True, False], ids=["free", "one"])
@pytest.mark.parametrize("form", READING)
def test_the_first_queries_read_what_torch_reads_with_them(form: str, free: bool) -> None:
    given, net = pictures(2 if free else 1), resamplers.reader(form)
    made = reduce(resamplers.file(form, free), method="mqt", budget=Budget.tokens([5]), site="output")
    found, kept = run(made.model, {"pixel_values": given.numpy()})
    net.count = 5
    with torch.no_grad():
        close([found], [net(given).numpy()], 2e-5)
    assert kept.tolist() == [[*range(5)]] * len(given)
    assert made.plan.macs_after < made.plan.macs_before


@pytest.mark.parametrize("form", READING)
def test_the_constant_of_the_queries_is_shorter(form: str, tmp_path: Path) -> None:
    """A quarter of the queries: what they and their tables take of the file is a quarter, and the file checks."""
    reduce(
        resamplers.file(form),
        method="mqt",
        budget=Budget.keep(0.25),
        site="output",
        output=tmp_path / "short.onnx",
    )
    model = onnx.load(tmp_path / "short.onnx")
    onnx.checker.check_model(model, full_check=True)
    short = [entry for entry in model.graph.initializer if entry.name.endswith("_first_4")]
    assert [4 in entry.dims for entry in short] == [True]
    assert resamplers.QUERIES not in short[0].dims


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (lambda: resamplers.file("among"), {}, "its queries read one another at Softmax node"),
        (lambda: resamplers.file("itself"), {}, "cannot be followed: Concat node"),
        (lambda: tower("mlp"), {}, "not what learned queries, .*--set weights=FILE"),
        (lambda: resamplers.file("published"), {"protect": "3"}, "keeps the first of the model's queries"),
        (lambda: resamplers.file("published"), {"budget": Budget.tokens([17])}, "17 tokens cannot stay"),
    ],
)
def test_other_outputs_are_refused(path: object, options: dict[str, object], message: str) -> None:
    given = {"method": "mqt", "budget": Budget.tokens([4]), "site": "output", **options}
    with pytest.raises(PlanError, match=message):
        reduce(path(), **given)  # type: ignore[operator,arg-type]


def test_other_methods_choose_among_the_rows() -> None:
    """A resampler's output is one like others to methods that only read its rows."""
    made = reduce(resamplers.file("published"), method="divprune", budget=Budget.tokens([5]), site="output")
    given = {"pixel_values": pictures(2).numpy()}
    found, kept = run(made.model, given)
    (full,) = run(resamplers.file("published"), given)
    close([found], [np.stack([rows[index] for rows, index in zip(full, kept, strict=True)])])
