"""Every test of the kernels, run again on a GPU: the same sizes, types, ties and odd numbers, the same rules."""

from __future__ import annotations

import inspect

import pytest

from tests.gpu.helpers import needs
from tests.plugins.host import test_kernels as on_cpu

pytestmark = [needs.gpu, pytest.mark.usefixtures("launchers_on_gpu")]

globals().update(
    {name: test for name, test in inspect.getmembers(on_cpu, inspect.isfunction) if name.startswith("test_")}
)
