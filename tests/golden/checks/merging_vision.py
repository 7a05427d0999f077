"""Merging of vision-language models: AIM before the language model, MustDrop's windows, DyMU with its map back."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np

from tests.golden.checks import prompts
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_aim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Rounds as recorded, which are those the method takes by itself where they are the authors'."""
    if params["variant"] != "merge":
        prompts.check_aim(arrays, params, backend)
        return
    rounds = "+".join(str(count) for count in params["r_schedule"])
    keep = arrays["x"].shape[1] - sum(params["r_schedule"])
    found = apply_method("aim", {"x": arrays["x"]}, keep=keep, protect=0, rounds=rounds, backend=backend)
    close("tokens", found["tokens"], arrays["y"])


def check_mustdrop(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """As many windows as the recorded threshold merged."""
    if params["variant"] != "spatial_merge":
        prompts.check_mustdrop(arrays, params, backend)
        return
    side = isqrt(arrays["x"].shape[1] - 1)
    given = {"x": arrays["x"], "grid": (side, side)}
    keep = arrays["y"].shape[1]
    found = apply_method("mustdrop", given, keep=keep, protect=1, side=params["win"], backend=backend)
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])


def check_dymu(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """One image at a time, each with the count its threshold left; a batch puts padding behind the shorter ones."""
    batch = params["variant"] == "batch"
    for image in range(len(arrays["x"])):
        given = {name: arrays[name][image : image + 1] for name in ("x", "size")}
        given["keys"] = arrays["metric"][image : image + 1, None]
        wanted = {name: arrays[name][image] for name in ("y", "size_out", "assign", "y_unmerged")}
        slots = np.flatnonzero(arrays["padding_mask"][image] == 0) if batch else np.arange(len(wanted["y"]))
        found = apply_method(
            "dymu", given, keep=len(slots), protect=int(params["class_token"]), restore=True, backend=backend
        )
        tokens, size, assign = (found[name][0] for name in ("tokens", "size", "assign"))
        # A batch is in no order that torch promises, and divides by the size and 1e-4.
        share = size / (size + 1e-4) if batch else np.ones_like(size)
        order = _slots(assign, wanted["assign"]) if batch else slots
        close("tokens", tokens * share, wanted["y"][order])
        close("sizes", size, wanted["size_out"][order])
        equal("map", order[assign], wanted["assign"])
        close("tokens at all places", found["restored"][0] * share[assign], wanted["y_unmerged"])


def _slots(assign: Any, wanted: Any) -> Any:
    """The recorded slot of each of ours."""
    order = np.zeros(assign.max() + 1, np.int64)
    order[assign] = wanted
    return order


CHECKS: Mapping[str, Check] = {"aim": check_aim, "mustdrop": check_mustdrop, "dymu": check_dymu}
