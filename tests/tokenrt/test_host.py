"""Positions of the tokens that stay, against those that transformers gives a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.host import fewer_placeholders, next_position, position_ids, staying


def test_text_stays_and_the_kept_tokens_ascend() -> None:
    stay = staying([[3, 1], [0, 2]], start=2, tokens=4, length=8)
    assert stay.tolist() == [[0, 1, 3, 5, 6, 7], [0, 1, 2, 4, 6, 7]]


def test_placeholders_of_every_picture_become_fewer() -> None:
    assert fewer_placeholders([9, 9, 9, 1, 2, 9, 9, 3], 9, 2).tolist() == [[9, 9, 1, 2, 9, 9, 3]]
    pair = [[4, 9, 9, 9, 1, 9, 9], [9, 9, 4, 1, 9, 9, 9]]
    assert fewer_placeholders(pair, 9, 1).tolist() == [[4, 9, 1, 9], [9, 4, 1, 9]]
    assert fewer_placeholders([[1, 9, 9]], 9, 2).tolist() == [[1, 9, 9]]


def test_both_conventions_of_a_one_dimensional_model() -> None:
    stay = staying([[3, 1]], start=2, tokens=4, length=8)
    own = position_ids(stay, np.arange(8)[None])
    assert own.tolist() == [[0, 1, 3, 5, 6, 7]]
    assert next_position(own).tolist() == [8]
    again = position_ids(stay, np.arange(8)[None], "renumbered")
    assert again.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert next_position(again).tolist() == [6]


def test_three_axes_as_transformers_numbers_them() -> None:
    """Qwen2-VL: the positions of the whole prompt come from transformers; kept tokens keep their row and column."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 64,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    model = transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLModel(config)
    ids = torch.tensor([[1, 2, 62, *[60] * 6, 63, 3, 4]])
    grid = torch.tensor([[1, 4, 6]])
    whole, _ = model.get_rope_index(ids, mm_token_type_ids=(ids == 60).int(), image_grid_thw=grid)
    stay = staying([[0, 4]], start=3, tokens=6, length=12)
    found = position_ids(stay, whole.numpy())
    assert found.shape == (3, 1, 8)
    assert found[:, 0, 3:5].T.tolist() == [[3, 3, 3], [3, 4, 4]]
    assert found[:, 0, 5:].tolist() == whole[:, 0, 9:].tolist()
    assert next_position(found).tolist() == [int(whole.max()) + 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: staying([[4]], 2, 4, 8), "kept_index has 4 to 4, and the picture 4 tokens"),
        (lambda: staying([[0]], 6, 4, 8), "does not lie in a prompt of 8"),
        (lambda: position_ids([[0]], np.arange(4)), "expected .B,L. or .A,B,L."),
        (
            lambda: fewer_placeholders([[1, 2]], 9, 1),
            "a prompt has none of the placeholder 9 for a picture, and 1",
        ),
        (
            lambda: fewer_placeholders([[9, 9, 1, 9]], 9, 2),
            "a prompt has 1 of the placeholder 9 for a picture, and 2",
        ),
        (
            lambda: fewer_placeholders([[9, 9, 9, 1], [9, 1, 9, 2]], 9, 1),
            "the prompts would have 2, 4 tokens",
        ),
        (lambda: position_ids([[0]], [[0, 1]], "mine"), "no convention is called 'mine'"),
    ],
)
def test_what_cannot_be_is_said(call: object, message: str) -> None:
    with pytest.raises(TokenrtError, match=message):
        call()  # type: ignore[operator]
