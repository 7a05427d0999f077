"""Kernels past each boundary inside them: against the references, and with the blocks of every launch in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.jobs import JOBS
from tests.plugins.helpers.running import KINDS, needs_compiler, run, wide
from tokenrt.plugins.contracts import contracts
from tokenrt.plugins.host import kernels

pytestmark = needs_compiler


def differing(found: Any, wanted: Any, name: str) -> None:
    """Selections hold exactly, but numbers to rounding."""
    for actual, right in zip(found, wanted, strict=True):
        if right.dtype.kind == "i":
            np.testing.assert_array_equal(actual, right, err_msg=name)
        else:
            np.testing.assert_allclose(actual, right, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_past_a_boundary(name: str) -> None:
    job = JOBS[name]()
    differing(
        run(job.operator, [*job.inputs], job.attributes),
        expect(job.operator, wide([*job.inputs]), job.attributes),
        name,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", JOBS)
def test_blocks_in_another_order_change_no_bit(name: str, kind: str) -> None:
    job = JOBS[name]()
    own = [tensor.type == "own" for tensor in contracts()[job.operator].inputs]
    inputs = [item.astype(KINDS[kind]) if mine else item for item, mine in zip(job.inputs, own, strict=True)]
    forwards = run(job.operator, inputs, job.attributes)
    with kernels.backwards():
        found = run(job.operator, inputs, job.attributes)
    for actual, right in zip(found, forwards, strict=True):
        assert actual.tobytes() == right.tobytes()
