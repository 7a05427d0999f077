"""Where the tokens of an output come from, and how far up a choice among them moves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.helpers.projectors import SIDE, tower
from tokenrt.passes.analysis.outlets.find import Outlet, climb, find
from tokenrt.passes.analysis.prepare import Prepared, prepare


def outlets(form: str) -> tuple[Prepared, tuple[Outlet, ...]]:
    prepared = prepare(tower(form))
    return prepared, find(prepared.model.graph, prepared.shapes, prepared.transformers)


@pytest.mark.parametrize(
    ("form", "tokens", "width", "grid", "maker"),
    [
        ("mlp", 36, 1, (6, 6), "Slice"),
        ("pooled", 9, 4, (3, 3), "Transpose"),
        ("shuffled", 9, 4, (3, 3), "Reshape"),
        ("resized", 16, 4, None, "Transpose"),
        ("deepstack", 9, 4, None, "Reshape"),
    ],
)
def test_rows_are_traced_to_the_tokens_they_are_made_of(
    form: str, tokens: int, width: int, grid: tuple[int, int] | None, maker: str
) -> None:
    prepared, (outlet, *_) = outlets(form)
    assert (outlet.tokens, outlet.grid, outlet.fixed) == (tokens, grid, ())
    assert outlet.source is not None
    assert outlet.source.tokens.shape == (tokens, width)
    top = climb(prepared.model.graph, prepared.shapes, outlet)
    producer = top.value.producer()
    assert producer is not None
    assert producer.op_type == maker or top.value is outlet.value


def test_squares_are_the_tokens_of_a_row() -> None:
    for form, first in (("pooled", [0, 1, SIDE, SIDE + 1]), ("shuffled", [1, 2, SIDE + 1, SIDE + 2])):
        _, (outlet,) = outlets(form)
        assert outlet.source is not None
        assert outlet.source.tokens[0].tolist() == first


def test_crops_are_one_sequence_whose_newlines_stay() -> None:
    _, (outlet,) = outlets("stitched")
    assert outlet.tokens == 36 + 12 * 13
    assert outlet.fixed == tuple(36 + 13 * row + 12 for row in range(12))
    assert outlet.source is not None
    assert outlet.source.folded
    # The second row of the put together picture begins with the second row of crop 1; tokens are numbered from its class token.
    assert outlet.source.tokens[36 + 13].tolist() == [1 * 37 + 1 + SIDE]


def test_outputs_of_one_token_axis_are_known_as_such() -> None:
    _, (first, *rest) = outlets("deepstack")
    assert [other.name for other in rest if other.beside(first)] == ["deepstack_0", "deepstack_1"]


def test_a_class_vector_is_no_outlet() -> None:
    prepared = prepare(tower("mlp"))
    graph = prepared.model.graph
    (outlet,) = find(graph, prepared.shapes, prepared.transformers)
    assert outlet.groups is not None
    assert np.unique(outlet.groups).size == 36
