"""Token Cropr: learned queries, with and without norm and projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method

STEM = "w_cross_attn_"
PARTS = {
    "q_proj": ("q.weight", "q.bias"),
    "k_proj": ("k.weight",),
    "pre_attn_norm": ("attn_norm.weight", "attn_norm.bias"),
}
"""What each flag of the release switches on."""


def check_cropr(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The tokens kept, best first, and those that left."""
    weights = {
        name: arrays[STEM + name.replace(".", "_")]
        for flag, names in PARTS.items()
        for name in names
        if params[flag] and STEM + name.replace(".", "_") in arrays
    }
    found = apply_method(
        "cropr",
        {"x": arrays["x"]},
        keep=arrays["y"].shape[1],
        backend=backend,
        order="score",
        weights={"queries": arrays[STEM + "queries"][0], **weights},
        epsilon=params.get("norm_eps", 1e-6),
    )
    equal("kept, best first", found["index"], arrays["keep_idx"])
    close("tokens", found["tokens"], arrays["y"])
    left = [np.flatnonzero(image < 0) for image in found["assign"]]
    equal("those that left", np.array(left), np.sort(arrays["drop_idx"], axis=1))
    close(
        "what they hold",
        np.take_along_axis(arrays["x"], arrays["drop_idx"][..., None], 1),
        arrays["y_pruned"],
    )


CHECKS: Mapping[str, Check] = {"cropr": check_cropr}
