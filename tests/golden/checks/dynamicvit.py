"""DynamicViT: predictor and selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Unsupported, close, equal
from tokenrt import apply_method
from tokenrt.passes import methods


def check_dynamicvit(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The kept tokens in descending order of the recorded scores, and what they hold."""
    if (arrays["policy"] != 1).any():
        raise Unsupported("tokens pruned before and masked, in place of being gone")
    names = methods.get("dynamicvit").needs
    found = apply_method(
        "dynamicvit",
        {"x": arrays["x"]},
        keep=arrays["y"].shape[1],
        backend=backend,
        order="score",
        weights={name: arrays["w_" + name.replace(".", "_")] for name in names},
    )
    equal("kept, best first", found["index"][:, 1:], arrays["keep_idx"] + 1)
    close("tokens", found["tokens"], arrays["y"])
    ranked = np.argsort(-arrays["scores"], axis=1, kind="stable")[:, : arrays["keep_idx"].shape[1]]
    equal("order of the recorded scores", found["index"][:, 1:], ranked + 1)


CHECKS: Mapping[str, Check] = {"dynamicvit": check_dynamicvit}
