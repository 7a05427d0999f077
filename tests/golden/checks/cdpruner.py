"""CDPruner, of its authors and as OpenVINO GenAI has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method, host


def _compare(given: Arrays, arrays: Arrays, order: Any, backend: str, **options: Any) -> None:
    """What is kept, and in which order it was chosen."""
    options |= {"keep": arrays["keep_idx"].shape[1], "protect": 0, "backend": backend}
    chosen = apply_method("cdpruner", given, order="score", **options)["index"]
    equal("order of choosing", chosen, order)
    equal("kept", apply_method("cdpruner", given, **options)["index"], arrays["keep_idx"])


def check_cdpruner(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    x, text = arrays["x"], arrays["text_embeds"]
    given = {
        "x": x,
        "patch_stream": arrays["image_embeds"],
        "text": np.broadcast_to(text, (len(x), *text.shape)),
    }
    _compare(given, arrays, arrays["select_order"], backend, form="authors", variant="reference")


def _positions(arrays: Arrays, params: Mapping[str, Any]) -> None:
    """Those of a prompt whose regions keep some tokens: text goes on behind the largest that was kept."""
    unit = params["spatial_merge_size"]
    media = [
        host.Medium((int(t), int(h) // unit, int(w) // unit), arrays[f"kept_{number}"])
        for number, (t, h, w) in enumerate(arrays["grid"])
    ]
    found, delta = host.medium_positions(arrays["pruned_ids"] == params["pad_id"], media, host.LARGEST)
    equal("positions", found, arrays["positions"])
    equal("rope delta", np.array([delta]), arrays["rope_delta"])


def check_openvino(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    if params["variant"] == "positions":
        _positions(arrays, params)
        return
    given = {"x": arrays["x"], "text": arrays["text"][:, None]}
    options = {name: params[key] for name, key in (("form", "variant"), ("weight", "relevance_weight"))}
    _compare(given, arrays, arrays["select_order"][None], backend, split=params["split"], **options)


CHECKS: Mapping[str, Check] = {"cdpruner": check_cdpruner, "cdpruner_openvino": check_openvino}
