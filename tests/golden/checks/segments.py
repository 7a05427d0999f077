"""Video methods on segments of frames: HoliTom, FastVID and PruneVid, the segments and still places as recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_holitom(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Whole clips, or the clustering of still places alone: two equal frames in which everything stands still."""
    mix = {"mix": "mean" if params["NO_BETA"] == "1" else "beta", "beta": params["Beta"]}
    x, y = arrays["x"], arrays["y"]
    if params.get("variant") == "density":
        places = x.shape[1]
        given = {
            "x": np.concatenate([x, x], axis=1),
            "importance": np.zeros((len(x), 2 * places), np.float32),
        }
        options: dict[str, Any] = {"frames": 2, "segments": "2", "still": str(places), "keep": y.shape[1]}
        found = _holitom(given, backend, **options, **mix)
        equal("centres", found["index"], arrays["keep_idx"])
        close("tokens", found["tokens"], y)
        return
    frames = len(x)
    windows = arrays["windows"]
    options = {
        "frames": frames,
        "segments": _listed(windows[:, 1] - windows[:, 0] + 1),
        "still": _listed(arrays["static_count"]),
        "keep": len(y),
    }
    given = {"x": x.reshape(1, -1, x.shape[2]), "importance": arrays["attn"].reshape(1, -1)}
    found = _holitom(given, backend, **options, **mix)
    close("tokens", found["tokens"][0], y)


def _holitom(given: Mapping[str, Any], backend: str, **options: Any) -> dict[str, Any]:
    return apply_method("holitom", given, protect=0, score="importance", backend=backend, **options)


def check_fastvid(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The tokens of the video; those of the text around it pass by."""
    start, frames, each = params["video_start"], params["frames"], params["tokens_per_frame"]
    end = start + frames * each
    after = arrays["x"].shape[1] - end
    kept = arrays["keep_idx"]
    found = apply_method(
        "fastvid",
        {"x": arrays["x"][:, start:end], "importance": arrays["frame_attn"][None]},
        keep=len(kept) - start - after,
        protect=0,
        frames=frames,
        segments=_listed(arrays["segment_sizes"]),
        context=params["STPrune_d"],
        anchor=params["DTM_p"],
        beta=params["DTM_beta"],
        score="importance",
        backend=backend,
    )
    equal("kept", found["index"][0] + start, kept[(kept >= start) & (kept < end)])
    close("tokens", found["tokens"], arrays["y"][:, start : arrays["y"].shape[1] - after])


def check_prunevid(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Merging before the language model: still places are those above the recorded threshold."""
    frames, each = params["frames"], params["grid"][0] * params["grid"][1]
    x = arrays["x"].reshape(frames, each, -1).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    start, still = 0, []
    for length in arrays["window_sizes"]:
        own = unit[start : start + length]
        alike = ((own.sum(0) ** 2).sum(1) - (own**2).sum((0, 2))) / max(length * (length - 1), 1)
        still.append(int((alike > params["threshold"]).sum()) if length > 1 else 0)
        start += length
    found = apply_method(
        "prunevid",
        {"x": arrays["x"]},
        keep=arrays["y"].shape[1],
        protect=0,
        frames=frames,
        segments=_listed(arrays["window_sizes"]),
        still=_listed(still),
        backend=backend,
    )
    close("tokens", found["tokens"], arrays["y"])


def _listed(counts: Any) -> str:
    return "+".join(str(int(count)) for count in counts)


CHECKS: Mapping[str, Check] = {
    "holitom_outer": check_holitom,
    "fastvid": check_fastvid,
    "prunevid": check_prunevid,
}
