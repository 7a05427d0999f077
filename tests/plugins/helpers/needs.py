"""What a machine must have for some tests of the plugins."""

from __future__ import annotations

import pytest

from tokenrt.errors import TokenrtError
from tokenrt.plugins.toolchain import nvcc


def has_nvcc() -> bool:
    try:
        nvcc.look()
    except TokenrtError:
        return False
    return True


needs_nvcc = pytest.mark.skipif(not has_nvcc(), reason="no nvcc")
