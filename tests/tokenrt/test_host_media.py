"""What the host of a video model computes: positions around what was kept, placeholders, counts."""

from __future__ import annotations

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.host import LARGEST, Medium, evs_count, medium_positions, placeholders


def test_text_counts_on_behind_a_medium() -> None:
    """Two words, five tokens of 3 frames of 2 x 2 at two a frame, three words."""
    kept = np.array([0, 1, 3, 6, 9])
    is_medium = np.array([False] * 2 + [True] * 5 + [False] * 3)
    medium = Medium((3, 2, 2), kept, 2.0)
    assert medium.rows().tolist() == [[0, 0, 0, 2, 4], [0, 0, 1, 1, 0], [0, 1, 1, 0, 1]]
    found, more = medium_positions(is_medium, [medium])
    assert found[0].tolist() == [0, 1, 2, 2, 2, 4, 6, 4, 5, 6]
    assert found[1].tolist() == [0, 1, 2, 2, 3, 3, 2, 4, 5, 6]
    assert found[2].tolist() == [0, 1, 2, 3, 3, 2, 3, 4, 5, 6]
    assert more == 7 - 10
    behind, more = medium_positions(is_medium, [medium], LARGEST)
    assert behind[0].tolist() == [0, 1, 2, 2, 2, 4, 6, 7, 8, 9]
    assert more == 0


def test_media_may_touch_and_start_the_prompt() -> None:
    media = [Medium((1, 1, 3), np.array([0, 2])), Medium((1, 2, 1), np.array([1]))]
    found, _ = medium_positions(np.array([True, True, True, False]), media)
    assert found.tolist() == [[0, 0, 3, 4], [0, 0, 4, 4], [0, 2, 3, 4]]


def test_a_prompt_for_other_media_is_refused() -> None:
    with pytest.raises(TokenrtError, match="the prompt has 1 tokens of media, and 2 were kept"):
        medium_positions(np.array([True, False]), [Medium((1, 1, 3), np.array([0, 2]))])


def test_counts() -> None:
    assert evs_count(4, 36, 0.5) == 72
    assert evs_count(2, 36, 0.9) == 36
    assert evs_count(10, 10, 0.7) == 30
    assert placeholders(33, 7) == [4] * 6 + [9]
