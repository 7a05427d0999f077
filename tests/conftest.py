"""Settings every test shares: no network, no display, no more threads than a worker's share of the cores, one seed for torch."""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test's nets draw without a generator is the same in whatever order tests run; torch is not imported for it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
