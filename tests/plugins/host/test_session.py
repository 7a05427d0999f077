"""Whole models: ONNX Runtime with the tokenrt nodes run by the kernels, against the published mathematics in float64."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import zoo
from tests.passes.helpers.published import DivPrune, EViT, Published, ToMe
from tests.passes.helpers.running import Variant, run
from tests.passes.ops.helpers import runner
from tests.passes.ops.helpers.cases import cases
from tests.passes.rewriting.test_dense import focus, focus_path
from tests.passes.rewriting.test_published import compare, images
from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import KERNELS
from tokenrt.plugins.host.session import HostSession
from tokenrt.plugins.toolchain.compiler import COMPILERS

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS), reason="no C++ compiler on PATH"
)


HALF = [
    (name, np.float16)
    for name, operator in OPERATORS.items()
    if operator.widens or operator.inputs[0] == "tokens"
]
"""Operators whose function body, too, takes half precision."""


@pytest.mark.parametrize(("name", "kind"), [*((name, np.float32) for name in sorted(KERNELS)), *HALF])
def test_a_node_runs_its_kernel(name: str, kind: Any) -> None:
    inputs, attributes = cases()[name]
    if kind == np.float16:
        halves = {"tokens", *OPERATORS[name].widens}
        inputs = [
            item.astype(kind) if key in halves else item
            for key, item in zip(OPERATORS[name].inputs, inputs, strict=True)
        ]
        attributes = {**attributes, "type": 10} if "type" in attributes else attributes
    model = runner.model(name, inputs, attributes)
    session = HostSession(model)
    found = session.run(
        {item.name: np.ascontiguousarray(x) for item, x in zip(model.graph.input, inputs, strict=True)}
    )
    assert session.calls == 1
    alone = kernels.run(name, inputs, OPERATORS[name].settle(attributes))
    for actual, wanted in zip(found.values(), alone, strict=True):
        assert actual.dtype == wanted.dtype
        np.testing.assert_array_equal(actual, wanted)


PUBLISHED: dict[str, tuple[Budget, Published]] = {
    "tome": (Budget.remove(2), ToMe(2, 1)),
    "evit": (Budget.keep(0.7, layers=(1, 2)), EViT(0.7, (1, 2))),
    "divprune": (Budget.keep(0.7, layers=(1, 2)), DivPrune(0.7, (1, 2))),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_vision_transformer_keeps_the_tolerance_rule(method: str) -> None:
    path = Variant("timm_vit").path()
    net = zoo.build("timm_vit")[0].net
    budget, published = PUBLISHED[method]
    reduced = reduce(path, method=method, budget=budget)
    pictures = images(8)
    session = HostSession(reduced.model)
    (found,) = session.run({"pixel_values": pictures.numpy()}).values()
    assert session.calls > 0
    compare(net, published, pictures, found)


@focus
@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("tome", Budget.remove(16)),
        ("evit", Budget.keep(0.7, layers=(3, 6))),
        ("divprune", Budget.keep(0.5, layers=(4,))),
    ],
)
def test_a_trained_model_says_the_same_in_both_forms(method: str, budget: Budget) -> None:
    """Rounding differs between the two forms as between any two orders of summation, and nothing else does."""
    reduced = reduce(focus_path(), method=method, budget=budget)
    session = HostSession(reduced.model)
    name = reduced.model.graph.inputs[0].name
    picture = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    wanted = run(reduced.model, {name: picture})
    found = [*session.run({name: picture}).values()]
    assert session.calls > 0
    for actual, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_what_a_kernel_refuses_is_raised_by_run() -> None:
    inputs, attributes = cases()["TokenSelect"]
    model = runner.model("TokenSelect", inputs, attributes)
    next(item for item in model.graph.node[0].attribute if item.name == "keep").ints[:] = [99]
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        HostSession(model).run({"score": inputs[0]})


def test_a_model_without_nodes_and_a_node_without_kernel_are_refused() -> None:
    inputs, attributes = cases()["TokenSelect"]
    model = runner.model("TokenSelect", inputs, attributes)
    model.graph.node[0].op_type = "TokenDream"
    with pytest.raises(UnsupportedError, match="TokenDream has no CUDA kernel"):
        HostSession(model)
    model.graph.node[0].domain = ""
    with pytest.raises(TokenrtError, match="no tokenrt nodes"):
        HostSession(model)


MANY = """
import sys
import numpy as np
from tests.passes.ops.helpers import runner
from tests.passes.ops.helpers.cases import cases
from tokenrt.plugins.host.session import HostSession

inputs, attributes = cases()["TokenSelect"]
model = runner.model("TokenSelect", inputs, attributes)
sessions = [HostSession(model) for _ in range(6)]
feeds = {given.name: np.asarray(array) for given, array in zip(model.graph.input, inputs)}
results = [session.run(feeds) for session in sessions]
assert [session.calls for session in sessions] == [1] * 6
"""


def test_many_sessions_live_until_the_process_ends() -> None:
    """With an operator of its own for each node, a process of four sessions crashed when it ended."""
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stderr) == (0, "")
