"""Every kernel, run on the CPU, against the operator's NumPy reference: types, sizes at the boundaries, ties, NaN.

Numbers err at most twice as much as a plain implementation in the same type; choices are those of the reference, but
where scores tie after rounding.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import plain
from tests.helpers.tolerance import within_twice
from tests.passes.ops.helpers.cases import alternate, cases
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, SIZES, UNITS, needs_compiler, random, run, wide
from tokenrt.errors import UnsupportedError
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import KERNELS, TYPES

pytestmark = needs_compiler

TIE = 2.0**-20
"""Scores this close, relative to the largest, may be rounded into a tie by float32 arithmetic."""

STAYS_FLOAT = {
    "TokenCombine": 1,
    "TokenMerge": 1,
    "TokenScore": 2,
    "TokenGreedySelect": 1,
    "TokenCoverSelect": 1,
    "TokenDeterminantSelect": 1,
    "TokenMeans": 1,
    "TokenMedoids": 1,
}
"""Operators of which one input is float32 whatever the tokens are: sizes, bias, importance."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_takes_every_type(name: str, kind: str) -> None:
    inputs, attributes = cases()[name]
    own = [item.astype(KINDS[kind]) if item.dtype == np.float32 else item for item in inputs]
    if name in STAYS_FLOAT:
        own[STAYS_FLOAT[name]] = inputs[STAYS_FLOAT[name]]
    found = run(name, own, attributes)
    for actual, wanted in zip(found, expect(name, wide(own), attributes), strict=True):
        assert actual.shape == wanted.shape
        if wanted.dtype.kind == "i":
            np.testing.assert_array_equal(actual, wanted)
        else:
            unit = UNITS[kind] if name in ("TokenCombine", "TokenMerge") else 2.0**-22
            np.testing.assert_allclose(actual.astype(np.float64), wanted, atol=4 * unit, rtol=4 * unit)


# TokenSelect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_select_is_the_reference(tokens: int, kind: str) -> None:
    score = np.stack([random((tokens,)), np.round(random((tokens,))), np.zeros(tokens, np.float32)]).astype(
        KINDS[kind]
    )
    score[0, tokens // 2 :: 3] = np.nan
    score[1, tokens // 3 :: 4] = np.inf
    score[1, 1::7] = -np.inf
    score[2, ::2] = -0.0
    for protect in sorted({0, 1, 5}):
        if protect >= tokens:
            continue
        for keep, order in itertools.product({protect + 1, (protect + 1 + tokens) // 2, tokens}, (0, 1)):
            attributes = {"keep": keep, "protect": protect, "order": order}
            (found,) = run("TokenSelect", [score], attributes)
            np.testing.assert_array_equal(found, expect("TokenSelect", wide([score]), attributes)[0])


@pytest.mark.parametrize("order", [0, 1])
def test_select_has_no_limit_of_k(order: int) -> None:
    score = np.round(random((1, 4500)), 2)
    attributes = {"keep": 4200, "protect": 3, "order": order}
    np.testing.assert_array_equal(
        run("TokenSelect", [score], attributes)[0], expect("TokenSelect", [score], attributes)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_groups_keep_their_quotas(kind: str) -> None:
    for protect, lengths in ((0, [1]), (1, [31, 1]), (5, [16, 0, 9, 3]), (1, [98, 98]), (0, [300, 277])):
        score = np.round(random((2, protect + sum(lengths))), 1).astype(KINDS[kind])
        score[1, ::3] = np.nan
        for share in (0.0, 0.3, 1.0):
            quotas = [round(share * length) for length in lengths]
            if protect + sum(quotas) == 0:
                continue
            given = {
                "keep": protect + sum(quotas),
                "protect": protect,
                "lengths": lengths,
                "quotas": quotas,
            }
            (found,) = run("TokenGroupSelect", [score], given)
            np.testing.assert_array_equal(found, expect("TokenGroupSelect", wide([score]), given)[0])


def test_quotas_that_do_not_fit_are_refused() -> None:
    score = np.zeros((1, 9), np.float32)
    for lengths, quotas in (([4, 4], [2, 2]), ([4, 5], [2, 3])):
        given = {"keep": 4, "protect": 0, "lengths": lengths, "quotas": quotas}
        with pytest.raises(UnsupportedError, match="lengths add up to"):
            run("TokenGroupSelect", [score], given)


# TokenMatch ----------------------------------------------------------------------------------------------------------


def check_match(metric: Any, attributes: dict[str, Any]) -> None:
    """Values by the rule; lists equal but for images whose similarities nearly tie, and those must be consistent."""
    found, exact = (run("TokenMatch", [metric], attributes), expect("TokenMatch", wide([metric]), attributes))
    sources, destinations = attributes["sources"], attributes["destinations"]
    similar = plain.cosine(metric.astype(np.float32), sources, destinations)
    within_twice(found[0], exact[0], similar.max(2), unit=2.0**-23)
    exactly = plain.cosine(metric.astype(np.float64), sources, destinations)
    for image in range(len(metric)):
        if all((a[image] == b[image]).all() for a, b in zip(found[1:], exact[1:], strict=True)):
            continue
        ordered = np.sort(np.ravel(exactly[image]))
        assert (np.diff(ordered) <= TIE).any(), "a clear choice differs"
        everything = np.concatenate([found[1][image], found[2][image]])
        np.testing.assert_array_equal(np.sort(everything), np.arange(metric.shape[1]))
        assert ((found[3][image] >= 0) & (found[3][image] < attributes["keep"])).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES[1:])
def test_match_follows_the_reference(tokens: int, kind: str) -> None:
    for protect, width in ((0, 64), (1, 20), (5, 7)):
        if protect + 2 > tokens or (tokens > 300 and protect != 1):
            continue
        metric = random((2 if tokens < 300 else 1, tokens, width), kind)
        most = len(alternate(tokens, protect, 1, 0)["sources"])
        for remove, order in {(1, 0), (most, 0), ((most + 1) // 2, 1)}:
            check_match(metric, alternate(tokens, protect, remove, order))


def test_match_in_large_tiles() -> None:
    check_match(random((1, 1300, 24)), alternate(1300, 1, 400, 0))


@pytest.mark.parametrize("tokens", [8, 33, 197])
def test_exact_ties_of_similarity_go_to_the_smaller_index(tokens: int) -> None:
    few = np.eye(8, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, (2, tokens))]
    for metric, order in itertools.product((few, np.ones_like(few), np.zeros_like(few)), (0, 1)):
        attributes = alternate(tokens, order, (tokens - order) // 3, order)
        for actual, wanted in zip(
            run("TokenMatch", [metric], attributes)[1:],
            expect("TokenMatch", [metric], attributes)[1:],
            strict=True,
        ):
            np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 4, 7, slice(None)])
def test_odd_metrics_are_matched_as_the_reference_does(bad: float, where: Any) -> None:
    metric = random((2, 33, 8))
    metric[:, where, 1] = bad
    attributes = alternate(33, 1, 9, 0)
    for actual, wanted in zip(
        run("TokenMatch", [metric], attributes)[1:],
        expect("TokenMatch", wide([metric]), attributes)[1:],
        strict=True,
    ):
        np.testing.assert_array_equal(actual, wanted)


# TokenCombine --------------------------------------------------------------------------------------------------------


def merging(batch: int, tokens: int, removed: int, width: int, kind: str) -> list[Any]:
    rng = np.random.default_rng(tokens)
    order = np.stack([rng.permutation(tokens) for _ in range(batch)])
    kept = tokens - removed
    return [
        random((batch, tokens, width), kind),
        rng.integers(1, 6, (batch, tokens, 1)).astype(np.float32),
        order[:, :kept],
        order[:, kept:],
        rng.integers(0, kept, (batch, removed)),
    ]


def one_at_a_time(tokens: Any, size: Any, keep: Any, source: Any, destination: Any) -> Any:
    """The mean in the tokens' own type, one addition at a time."""
    rows = np.arange(len(tokens))[:, None]
    own = size.astype(tokens.dtype)
    total, mass = own[rows, keep].copy(), (tokens * own)[rows, keep]
    for image, (sources, slots) in enumerate(zip(source, destination, strict=True)):
        for position, slot in zip(sources, slots, strict=True):
            mass[image, slot] += tokens[image, position] * own[image, position]
            total[image, slot] += own[image, position]
    return mass / total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES[1:])
def test_combine_is_as_exact_as_the_plain_mean(tokens: int, kind: str) -> None:
    for removed, width in ((1, 24), (tokens // 2, 33), (tokens - 1, 8)):
        inputs = merging(2, tokens, removed, width, kind)
        attributes = {"type": TYPES[kind]}
        merged, total = run("TokenCombine", inputs, attributes)
        wanted, wanted_total = expect("TokenCombine", wide(inputs), attributes)
        within_twice(merged, wanted, one_at_a_time(*inputs), unit=UNITS[kind])
        np.testing.assert_array_equal(total, wanted_total)
        assert merged.dtype == KINDS[kind]


@pytest.mark.parametrize("width", [1, 768, 1100])
def test_combine_covers_every_channel(width: int) -> None:
    inputs = merging(1, 33, 12, width, "float16")
    merged, _ = run("TokenCombine", inputs, {"type": 10})
    wanted = expect("TokenCombine", wide(inputs), {"type": 10})[0]
    within_twice(merged, wanted, wanted.astype(np.float16), unit=2.0**-11)


def test_combine_stages_many_sources() -> None:
    inputs = merging(1, 4096, 2500, 4, "float32")
    inputs[4][0, ::2] = 7
    wanted = expect("TokenCombine", wide(inputs), {"type": 1})[0]
    within_twice(run("TokenCombine", inputs, {"type": 1})[0], wanted, one_at_a_time(*inputs))


def test_equal_and_untouched_tokens_pass_bit_for_bit() -> None:
    inputs = merging(2, 65, 20, 24, "float32")
    merged, _ = run("TokenCombine", inputs, {"type": 1})
    for image in range(2):
        alone = np.setdiff1d(np.arange(45), inputs[4][image])
        np.testing.assert_array_equal(merged[image, alone], inputs[0][image, inputs[2][image, alone]])
    inputs[0][:] = inputs[0][:, :1]
    merged, _ = run("TokenCombine", inputs, {"type": 1})
    np.testing.assert_array_equal(merged, np.repeat(inputs[0][:, :1], 45, axis=1))


def test_tokens_of_size_zero_weigh_nothing() -> None:
    tokens = np.array([[[1.0], [2.0], [4.0], [8.0], [np.inf]]], np.float32)
    size = np.array([[[0.0], [0.0], [3.0], [0.0], [0.0]]], np.float32)
    inputs = [tokens, size, np.array([[0, 1, 3]]), np.array([[2, 4]]), np.array([[1, 0]])]
    merged, total = run("TokenCombine", inputs, {"type": 1})
    assert merged.tolist() == [[[1.0], [4.0], [8.0]]]
    assert total.tolist() == [[[0.0], [3.0], [0.0]]]


# TokenRestore --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 33, 1024, 1032])
def test_restore_copies_rows(width: int, kind: str) -> None:
    for kept, tokens in ((1, 1), (1, 33), (31, 7), (197, 257)):
        rows = random((2, kept, width), kind)
        places = np.random.default_rng(0).integers(0, kept, (2, tokens))
        np.testing.assert_array_equal(
            run("TokenRestore", [rows, places], {})[0], expect("TokenRestore", [rows, places], {})[0]
        )


def test_an_index_out_of_range_gives_zeros() -> None:
    (found,) = run("TokenRestore", [random((1, 3, 4)), np.array([[0, -1, 3, 2**40]])], {})
    assert (found[0, 1:] == 0).all()


# TokenScore ----------------------------------------------------------------------------------------------------------


def rows_of_attention(queries: Any, keys: Any, bias: Any, scale: float, first: int, end: int) -> Any:
    logits = (queries[:, :, first:end] * np.float32(scale)) @ keys.transpose(0, 1, 3, 2) + bias
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return (weight / weight.sum(-1, keepdims=True)).mean((1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_score_is_as_exact_as_plain_float32(tokens: int, kind: str) -> None:
    for width, (first, end) in itertools.product(
        (16, 9), {(0, 1), (tokens - 1, tokens), (0, tokens), (0, tokens // 2)}
    ):
        if first == end or (tokens > 300 and (width == 9 or kind != "float32")):
            continue
        queries, keys = (random((2 if tokens < 200 else 1, 2, tokens, width), kind, seed) for seed in (1, 2))
        shapes = [(1, 1, 1, 1), (len(queries), 1, 1, tokens), (1, 2, end - first, tokens)]
        bias = random(shapes[(tokens + width) % 3])
        attributes = {"scale": width**-0.5, "first_row": first, "end_row": end}
        (found,) = run("TokenScore", [queries, keys, bias], attributes)
        given = [queries.astype(np.float32), keys.astype(np.float32), bias]
        (wanted,) = expect("TokenScore", wide(given), attributes)
        # A score errs in proportion to itself. Relative errors compare all of them, not the luck of the largest.
        usual = rows_of_attention(*given, width**-0.5, first, end)
        within_twice(found / wanted, wanted / wanted, usual / wanted)


@pytest.mark.parametrize("rows", [1, 9])
def test_masked_tokens_get_nothing_and_masked_rows_are_nan(rows: int) -> None:
    queries, keys = random((1, 2, 9, 8)), random((1, 2, 9, 8), seed=1)
    bias = np.zeros((1, 1, 1, 9), np.float32)
    bias[..., 4:] = -np.inf
    attributes = {"scale": 1.0, "first_row": 0, "end_row": rows}
    (found,) = run("TokenScore", [queries, keys, bias], attributes)
    assert (found[:, 4:] == 0).all()
    np.testing.assert_allclose(found, expect("TokenScore", [queries, keys, bias], attributes)[0], rtol=1e-6)
    bias[:] = -np.inf
    assert np.isnan(run("TokenScore", [queries, keys, bias], attributes)[0]).all()


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_odd_logits_make_nan_as_softmax_does(bad: float, rows: int) -> None:
    queries, keys = random((1, 2, 9, 8)), random((1, 2, 9, 8), seed=1)
    bias = np.zeros((1, 1, 1, 9), np.float32)
    bias[..., 4] = bad
    attributes = {"scale": 1.0, "first_row": 0, "end_row": rows}
    assert np.isnan(run("TokenScore", [queries, keys, bias], attributes)[0]).all()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_run() -> None:
    for name, (inputs, attributes) in cases().items():
        if name in KERNELS:
            for one, other in zip(run(name, inputs, attributes), run(name, inputs, attributes), strict=True):
                np.testing.assert_array_equal(one, other)


def test_what_a_kernel_cannot_take_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenSelect", [np.zeros((1, 16385), np.float32)], {"keep": 2, "protect": 0, "order": 0})
    with pytest.raises(UnsupportedError, match="error 1: a size is outside"):
        run("TokenSelect", [np.zeros((1, 5), np.float32)], {"keep": 6, "protect": 0, "order": 0})
    with pytest.raises(UnsupportedError, match=r"error 801: the kernels take .* tensors: float64\[1, 5\]"):
        run("TokenSelect", [np.zeros((1, 5))], {"keep": 2, "protect": 0, "order": 0})
    with pytest.raises(UnsupportedError, match="TokenGreedy has no CUDA kernel"):
        kernels.run("TokenGreedy", [], {})


def test_a_misaligned_pointer_is_an_error_and_nothing_is_written() -> None:
    import ctypes

    library = kernels.library()
    score, index = kernels.aligned((1, 9), np.float32), kernels.aligned((1, 4), np.int64)
    index[:] = -7
    for off, status in ((2, 716), (0, 0)):
        pointers = [ctypes.c_void_p(score.ctypes.data + off), ctypes.c_void_p(index.ctypes.data), None]
        assert library.host_token_select(1, *pointers, 1, 8, 3, 0, 0) == status
        assert (index == -7).all() == (status != 0)
    assert library.host_token_select(1, None, *pointers[1:], 1, 8, 3, 0, 0) == 1
