"""Every method, whatever it is: every backend, sizes at the boundaries, protected tokens or none, batch 1 and 3.

Numbers agree with float64 by the tolerance rule, with `rounding` as the yardstick. Choices may differ only for
images in which rounding alone can change them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.conformance.helpers.given import call, wide
from tests.conformance.helpers.rounding import UNIT, shaken
from tests.plugins.helpers.running import needs_compiler
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.forms.bodies import for_gpu
from tokenrt.passes.ops.graph_backend import GraphOps

SMALL, LARGE = (2, 3, 31, 32, 33), (196, 197, 257, 577, 1025)
SLOW = {
    257: ("cdpruner",),
    577: ("catp", "cdpruner", "expedit", "kmedoids", "scope", "vflowopt", "vispruner", "when_less_is_enough"),
    1025: (
        "algm", "atc", "ats", "bat", "catp", "cdpruner", "diffrate", "dpcknn", "expedit", "gtp", "hiprune", "holov",
        "kmedoids", "mctf", "scope", "sinkhorn", "token_pooling", "vflowopt", "vispruner", "when_less_is_enough",
        "zerotprune", "zoo_prune",
    ),
}  # fmt: skip
"""Methods that take more than two seconds at these sizes, most of them for the draws in float64: left to the full matrix."""

DRAWS, MORE = (0, 2, 6), 40
"""Draws of rounding, more where fewer do not explain a difference (each allows more than fewer do); MORE decide at last."""

CHOICES = ("assign", "index")
BACKENDS = ["numpy", "onnxruntime", pytest.param("plugin-host", marks=needs_compiler)]

GPU_BODIES = "onnxruntime, bodies for GPUs"

BY_KERNEL = (2, 33, 197)
"""Sizes at which the kernels, on the CPU, and the bodies for GPUs run outside the full matrix too."""


FEW = (33, 197)
"""Sizes at which methods inside language models, and those that run on arrays alone, run outside the full matrix."""

PROTECTED = (0, 1, 5)


def settings() -> Iterator[Any]:
    """Backend, method, tokens, kept, protected, batch.

    Quick: every method at 33 tokens however many are protected; at other small sizes with one of these numbers, at half of the
    large sizes, each method at others than the next; some methods at FEW alone.
    """
    places = {name: place for place, name in enumerate(methods.of_tokens())}
    for name, tokens, protect, batch in itertools.product(places, SMALL + LARGE, PROTECTED, (1, 3)):
        method = methods.get(name)()
        if protect >= tokens:
            continue
        fewest = method.fewest(tokens, protect)
        counts = {fewest, tokens - 1} if tokens in SMALL else {max(fewest, tokens // 2)}
        one = batch == (1 if tokens % 2 else 3)
        even = protect == tokens % 2
        turn = places[name] + (SMALL + LARGE).index(tokens)
        small = tokens == 33 or (turn + PROTECTED.index(protect)) % len(PROTECTED) == 0
        large = even and (tokens == 197 or turn % 2 == 0)
        usual = one and (small if tokens in SMALL else large)
        if method.pending or method.home in ("prefill", "step"):
            usual = one and even and tokens in FEW
        for keep in sorted(count for count in counts if fewest <= count < tokens):
            marks = [] if usual and name not in SLOW.get(tokens, ()) else [pytest.mark.slow]
            label = f"{name}-{tokens}-{keep}-{protect}-{batch}"
            yield pytest.param("onnxruntime", name, tokens, keep, protect, batch, id=label, marks=marks)
            if not one or (tokens in LARGE and not even):
                continue
            marks = [] if tokens in BY_KERNEL and even and usual else [pytest.mark.slow]
            if tokens in BY_KERNEL:
                yield pytest.param(
                    GPU_BODIES, name, tokens, keep, protect, batch, id=f"gpu-bodies-{label}", marks=marks
                )
            yield pytest.param(
                "plugin-host",
                name,
                tokens,
                keep,
                protect,
                batch,
                id=f"kernels-{label}",
                marks=[needs_compiler, *marks],
            )


def functions_for_gpu(op: GraphOps, model: ir.Model, portable: Any = GraphOps.add_functions) -> None:
    """The form that GPU targets get: their bodies, and what fuses there."""
    portable(op, model)
    assert for_gpu(model) or not op.used


def fitting(
    name: str, tokens: int, keep: int, protect: int, batch: int, *, sized: bool = True
) -> dict[str, Any]:
    """Arguments with the count nearest to `keep` that the method takes; skips, in its words, where it takes none.

    sized: tokens have sizes, as behind a merge or where some are padding.
    """
    refused = ""
    for count in sorted(range(protect + 1, tokens), key=lambda count: abs(count - keep))[:60]:
        given = call(methods.get(name), tokens, count, protect, batch)
        if not sized:
            del given["tensors"]["size"]
        try:
            apply_method(name, backend="numpy", **given)
        except (MethodError, PlanError) as refusal:
            refused = refused or str(refusal)
        else:
            return given
    pytest.skip(f"{name}: {refused}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The settings of the full matrix, twice those of the rest, are not even collected where slow tests are left out."""
    names = ("backend", "name", "tokens", "keep", "protect", "batch")
    if not {*names}.issubset(metafunc.fixturenames):
        return
    quick = metafunc.config.getoption("markexpr") == "not slow"
    metafunc.parametrize(
        names, [case for case in settings() if not (quick and pytest.mark.slow in case.marks)]
    )


@pytest.mark.parametrize("sized", [False, True], ids=["plain", "sized"])
def test_backends_agree(
    backend: str,
    name: str,
    tokens: int,
    keep: int,
    protect: int,
    batch: int,
    sized: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = fitting(name, tokens, keep, protect, batch, sized=sized)
    double = given | {"tensors": wide(given["tensors"])}
    exact = apply_method(name, backend="numpy", **double)
    if backend == GPU_BODIES:
        monkeypatch.setattr(GraphOps, "add_functions", functions_for_gpu)
        backend = "onnxruntime"
    found = apply_method(name, backend=backend, **given)
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in exact.items()
    }
    check_ranges(found, tokens, given["keep"])
    for draws in DRAWS:
        noisy = shaken(monkeypatch, draws, name, double)
        if not unexplained(found, exact, noisy, []):
            return
    noisy += shaken(monkeypatch, MORE, name, double)
    tied = shaken(monkeypatch, MORE, name, double, ties=True)
    assert unexplained(found, exact, noisy, tied) == []


def unexplained(
    found: dict[str, Any], exact: dict[str, Any], noisy: list[dict[str, Any]], tied: list[dict[str, Any]]
) -> list[str]:
    """What of `found` differs from `exact` by more than twice what rounding did to it, image by image.

    tied: draws that tell ties; they allow no number to be farther off.
    """
    different = []
    for image in range(len(exact["tokens"])):
        same = all((found[key][image] == exact[key][image]).all() for key in CHOICES)
        draws = [*noisy, *tied]
        steady = all((draw[key][image] == exact[key][image]).all() for draw in draws for key in CHOICES)
        if steady and not same:
            different.append(f"image {image}: a clear choice")
        for key in ("tokens", "size") if steady and same else ():
            wanted = exact[key][image]
            spread = max((float(np.max(np.abs(draw[key][image] - wanted))) for draw in noisy), default=0.0)
            allowed = 2 * spread + UNIT * float(np.max(np.abs(wanted)))
            off = float(np.max(np.abs(found[key][image] - wanted)))
            if not off <= allowed:
                different.append(f"image {image}: {key} off by {off:.3g}, allowed {allowed:.3g}")
    return different


def check_ranges(found: dict[str, Any], tokens: int, keep: int) -> None:
    """Every index points at something that exists."""
    assert found["tokens"].shape[1] == found["size"].shape[1] == keep
    assert ((found["index"] >= 0) & (found["index"] < tokens)).all()
    assert ((found["assign"] >= -1) & (found["assign"] < keep)).all()


ODD = [*itertools.product((np.nan, np.inf, -np.inf, 0.0), (0, 5, slice(None)))]
"""Numbers, and where they stand: at a protected token, at one other, at all."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", methods.of_tokens())
def test_odd_numbers_never_lead_out_of_range(name: str, backend: str) -> None:
    """Each in two images of one batch."""
    given = fitting(name, 37, 25, 1, 2 * len(ODD))
    for place, (number, where) in enumerate(ODD):
        images = slice(2 * place, 2 * place + 2)
        for tensor in ("keys", "queries", "values"):
            given["tensors"][tensor][images, :, where] = number
        given["tensors"]["x"][images, where] = number
    check_ranges(apply_method(name, backend=backend, **given), 37, given["keep"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", methods.of_tokens())
def test_protected_tokens_pass_untouched(name: str, backend: str) -> None:
    given = fitting(name, 38, 27, 2, 2)
    found = apply_method(name, backend=backend, **given)
    rows = [np.flatnonzero((found["index"] == place).all(axis=0))[0] for place in (0, 1)]
    np.testing.assert_array_equal(found["tokens"][:, rows], given["tensors"]["x"][:, :2])


@pytest.mark.parametrize("name", [name for name in methods.of_tokens() if methods.get(name).merges])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_tokens_merge_without_loss(name: str, backend: str) -> None:
    """All tokens equal: every mean is the token, bit for bit or within one rounding, and the sizes of all that stay add up."""
    given = fitting(name, 37, 25, 1, 2)
    for tensor in ("x", "keys", "queries", "values"):
        given["tensors"][tensor][:] = given["tensors"][tensor][..., 3:4, :]
    if "segments" in given["tensors"]:
        # An output of no token is padding; here each has some.
        given["tensors"]["segments"] = np.arange(2 * 37).reshape(2, 37) % 24
    found = apply_method(name, backend=backend, **given)
    np.testing.assert_allclose(found["tokens"], given["tensors"]["x"][:, : given["keep"]], rtol=3e-7)
    stays = (found["assign"] >= 0)[:, :, None]
    total = (given["tensors"]["size"] * stays).sum(axis=1)
    np.testing.assert_allclose(found["size"].sum(axis=1), total, rtol=1e-6)
