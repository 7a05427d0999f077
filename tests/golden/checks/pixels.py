"""Patches that leave before the tower: PixelPrune, by the host, and by the method where neighbours count as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method, host


def check_pixelprune(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    height, width = params["merged_grid"]
    patches = arrays["pixels"].reshape(height * width, -1)
    wanted = arrays["keep_idx"]
    equal("mask", np.flatnonzero(arrays["keep_mask"]), wanted)
    equal("kept by the host", host.pixelprune(patches, (height, width), params["threshold"]), wanted)
    if not params["threshold"]:
        given = {"x": patches[None], "grid": (height, width)}
        found = apply_method("pixelprune", given, keep=len(wanted), protect=0, backend=backend)
        equal("kept", found["index"][0], wanted)


CHECKS: Mapping[str, Check] = {"pixelprune": check_pixelprune}
