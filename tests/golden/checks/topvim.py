"""ToP-ViM: selection around a class token in the middle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_topvim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """What is kept, the place of the class token, and both streams; a class token kept twice included."""
    output = arrays["xai"].transpose(0, 2, 1)[:, None]
    for stream, wanted in (("x", "y"), ("residual", "residual_out")):
        found = apply_method(
            "topvim",
            {"x": arrays[stream], "values": output},
            keep=arrays["y"].shape[1],
            protect=0,
            backend=backend,
            variant="reference",
            class_place="middle",
        )
        middle = (found["index"].shape[1] - 1) // 2
        equal("class token", found["index"][:, middle], np.full(len(output), params["cls_pos"]))
        equal("kept", np.delete(found["index"], middle, axis=1), arrays["keep_idx"])
        close(stream, found["tokens"], arrays[wanted])


CHECKS: Mapping[str, Check] = {"topvim": check_topvim}
