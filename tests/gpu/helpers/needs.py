"""What the tests of this folder need, said once: they are collected everywhere, and skipped with this reason."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tokenrt.perf.bench.gpu.card import card

CARD = card()
CAPABILITY = None if CARD is None else CARD.capability
"""Compute capability of the first GPU, times ten; None where there is no driver or no GPU."""

gpu = pytest.mark.skipif(CAPABILITY is None, reason="no NVIDIA GPU here")
tensorrt = pytest.mark.skipif(
    find_spec("tensorrt") is None, reason="no tensorrt here: pip install 'tokenrt[tensorrt]'"
)
