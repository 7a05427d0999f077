"""Text encoders and diffusion: MrT5, RAS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_mrt5(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Each text with as many tokens as its gate lets through; what pads the shorter ones is no token."""
    del params
    weights = {"norm": arrays["w_ln"], "gate": arrays["w_gate"], "bias": arrays["w_gate_bias"]}
    for text, count in enumerate(arrays["keep_count"]):
        given = {
            "x": arrays["x"][text : text + 1],
            "size": (arrays["input_ids"][text : text + 1, :, None] > 0).astype(np.float32),
        }
        found = apply_method("mrt5", given, keep=int(count), protect=0, weights=weights, backend=backend)
        equal("kept", found["index"][0], arrays["keep_idx"][text, :count])
        close("tokens", found["tokens"][0], arrays["y"][text, :count])
        equal("tokens of the text", arrays["new_mask"][text] == 0, np.arange(arrays["y"].shape[1]) < count)


def check_ras(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Active patches in the released order, how often each has rested, and the latents of those that rest."""
    side = params["HW"] // params["patch_size"]
    given = {"x": arrays["metric"][None, :, None], "update": arrays["diff"], "grid": (side, side)}
    found = apply_method(
        "ras",
        given,
        keep=len(arrays["other_idx"]),
        protect=0,
        metric=params["metric"],
        high=params["high_ratio"],
        gamma=params["starvation_scale"],
        order="score",
        state={"rested": arrays["drop_cnt_in"][None]},
        backend=backend,
    )
    equal("active", found["index"][0], arrays["other_idx"])
    close("rested", found["state_rested"][0], arrays["drop_cnt_out"])
    resting = np.flatnonzero(found["assign"][0] < 0)
    equal("resting", resting, np.sort(arrays["cached_patch_idx"]))
    row, column = np.divmod(resting, side)
    corner = 2 * (row * params["HW"] + column)
    latents = corner[:, None] + np.array([0, 1, params["HW"], params["HW"] + 1])
    equal("latents", np.sort(latents.ravel()), np.sort(arrays["cached_latent_idx"]))


CHECKS: Mapping[str, Check] = {"mrt5": check_mrt5, "ras": check_ras}
