"""A segment map inside a decoder: what it merges stands at the place of its last token, so that a causal mask still holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import tokenrt
from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import SPAN, TOKENS, Choice, Seen
from tests.passes.prefill.test_prefill import CLOSE, outputs, pruned

MAP = np.full(TOKENS, -1)
MAP[SPAN[0] : SPAN[1]] = [2, 2, 0, 0, 1, 0, 1, 3, 4, 4, 4, 6, 5, 6]
"""Parts of seven names; some lie apart, and outputs are not numbered in the order of their last tokens."""

NAMES, WORDS = 7, TOKENS - SPAN[1] + SPAN[0]


GROUPS = sorted(
    [
        *([place] for place in range(TOKENS) if MAP[place] < 0),
        *(np.flatnonzero(n == MAP).tolist() for n in range(NAMES)),
    ],
    key=max,
)
"""The tokens of each output, in the order of their last ones."""


def by_map(seen: Seen, count: int, place: Callable[[list[int]], int] = max) -> Choice:
    """The mean of each name, where its last part stood, or another."""
    groups = sorted(GROUPS, key=place)
    share = torch.zeros(count, TOKENS)
    for row, members in enumerate(groups):
        share[row, members] = 1 / len(members)
    places = torch.tensor([place(members) for members in groups])
    return Choice(places[None].repeat(len(seen.kept), 1), share[None].repeat(len(seen.kept), 1, 1))


@pytest.fixture
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A decoder that hands on no caches, as one that embeds text."""
    model = onnx.load(prefill.exported("llama", "embeds", getattr(request, "param", 20)))
    del model.graph.output[1:]
    onnx.save(model, tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def merged(path: Path, count: int, **more: Any) -> Any:
    return pruned(path, {0: count}, method="segments", source_map=True, **more).model


def given(segments: Any = MAP) -> dict[str, torch.Tensor]:
    return {**prefill.inputs("embeds"), "segments": torch.from_numpy(segments)[None]}


@pytest.mark.parametrize("decoder", [20, pytest.param(23, marks=pytest.mark.slow)], indirect=True)
def test_names_stand_at_their_last_part(decoder: Path) -> None:
    found, counts = outputs(merged(decoder, WORDS + NAMES), given()), {0: WORDS + NAMES}
    wanted, other = (
        prefill.judged("llama", "embeds", prefill.inputs("embeds"), counts, rule=partial(by_map, place=place))
        for place in (max, min)
    )
    assert [
        np.flatnonzero(found["token_source_map"][0] == row).tolist() for row in range(len(GROUPS))
    ] == GROUPS
    np.testing.assert_allclose(found["logits"], wanted.logits, atol=CLOSE)
    assert np.abs(other.logits - wanted.logits).max() > 100 * CLOSE


@pytest.mark.parametrize("decoder", [20, pytest.param(23, marks=pytest.mark.slow)], indirect=True)
def test_names_that_the_map_leaves_out_are_as_if_they_were_not_there(decoder: Path) -> None:
    """Files of seven and of eleven outputs, the same map: the same answer, and empty outputs behind all others of the span."""
    less, more = (outputs(merged(decoder, WORDS + count), given()) for count in (NAMES, NAMES + 4))
    np.testing.assert_allclose(more["logits"], less["logits"], atol=CLOSE)
    assert (more["token_source_map"][0, : SPAN[1]] == less["token_source_map"][0, : SPAN[1]]).all()
    assert more["token_source_map"][0, SPAN[1] :].tolist() == [*range(SPAN[0] + NAMES + 4, WORDS + NAMES + 4)]
    other = outputs(merged(decoder, WORDS + NAMES + 4), given(np.where(MAP == 3, -1, MAP)))
    assert np.abs(other["logits"] - more["logits"]).max() > 100 * CLOSE


def test_caches_would_hold_what_is_made_of_nothing(tmp_path: Path) -> None:
    target = tmp_path / "merged.onnx"
    with pytest.raises(
        tokenrt.TokenrtError, match="segments may leave outputs of no token, padding, and the model"
    ):
        merged(prefill.exported("llama", "embeds", 20), WORDS + NAMES, output=target)
    assert not [*tmp_path.iterdir()]
