"""Settings every test shares: no network, no display, no more threads than a worker's share of the cores, one seed for torch."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

LONG = (
    "tokenrt/test_guides.py", "plugins/host/test_sanitizers.py", "passes/methods/test_whole_models.py",
    "passes/forms/test_half_pictures.py", "fuzz/test_fuzz.py", "targets/trtexec/test_remote.py",
)  # fmt: skip
"""Files of few tests that take a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no process of several is left with one when the others have ended."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives to the end: thousands of tests and all that is imported.

    Read through again and again, they are a quarter of what a reduction takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test's nets draw without a generator is the same in whatever order tests run; torch is not imported for it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def prepared_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """`reduce`, `plan` and `inspect` share what they prepare of the same model (tests/helpers/prepared.py).

    Not so in tests that may patch what prepares.
    """
    if "monkeypatch" in request.fixturenames:
        yield
        return
    from tests.helpers.prepared import once
    from tokenrt.passes import inspect, reducer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "prepare", once)
        patch.setattr(reducer, "prepare", once)
        yield


@pytest.fixture
def prepared_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that an earlier test had prepared is used."""
