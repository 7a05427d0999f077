"""Methods that choose among the frames of a video at a model's output: EVS, VidCom2, DyCoke."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method, host


def check_evs(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The mask, the positions of prompts around what is kept, and the placeholders they start with."""
    CASES[params["variant"]](arrays, params, backend)


def _mask(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    equal("kept", _evs(arrays["x"], params, backend), arrays["keep_idx"])


def _mrope(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    step = params["tokens_per_second"] * params["video_second_per_grid"]
    media = []
    for number, medium in enumerate(params["media"]):
        mask, rows = (
            arrays[f"{name}_{number}" if f"{name}_{number}" in arrays else name]
            for name in ("keep_mask", "media_pos")
        )
        kept = _evs(arrays[f"x_{number}"], medium, backend)
        equal("kept", kept, np.flatnonzero(mask))
        media.append(host.Medium(_grid(medium), kept, step))
        equal("rows", media[-1].rows(), rows[:, :3].T)
    is_medium = np.isin(arrays["input_ids"], (params["image_id"], params["video_id"]))
    positions, delta = host.medium_positions(is_medium, media)
    equal("positions", positions, arrays["positions"])
    equal("difference", np.array([delta]), arrays["delta"])


def _placeholders(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    del backend
    frames = params["num_frames"]
    kept = host.evs_count(frames, params["tokens_per_frame"], params["q"])
    equal("count", np.array(kept), np.array(params["K"]))
    equal("placeholders", np.array(host.placeholders(kept, frames)), arrays["tokens_per_frame"])


def _grid(medium: Mapping[str, Any]) -> tuple[int, int, int]:
    frames, height, width = medium["thw"]
    merge = medium["spatial_merge_size"]
    return frames, height // merge, width // merge


def _evs(x: Any, medium: Mapping[str, Any], backend: str) -> Any:
    frames, height, width = _grid(medium)
    keep = host.evs_count(frames, height * width, medium["q"])
    given = {"x": x[None], "grid": (frames, height, width)}
    return apply_method("evs", given, keep=keep, protect=0, backend=backend)["index"][0]


CASES = {"mask": _mask, "mrope": _mrope, "placeholder": _placeholders}


def check_vidcom2(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The authors' count is the sum of the shares of the frames; their grid mapper has newline tokens of its own."""
    count, each = arrays["v_score"].shape
    authors = params["variant"] == "authors"
    found = apply_method(
        "vidcom2",
        {"x": arrays["x"][None]},
        keep=int(arrays["ks"].sum()) if authors else params["K"],
        protect=0,
        frames=count,
        retention=params["base_scale"] if authors else 1 - params["q"],
        backend=backend,
    )
    kept = found["index"][0]
    if params.get("model") == "llava_vid":
        kept = _with_newlines(kept, count, each)
    equal("kept", kept, arrays["keep_idx"])


def _with_newlines(kept: Any, count: int, each: int) -> Any:
    """The same in rows that end in a newline token, which all stay, behind the tokens of their frame."""
    side = round(each**0.5)
    row = side + 1
    parts = []
    for frame in range(count):
        own = kept[kept // each == frame] - frame * each
        ends = np.arange(side) * row + side
        parts.append(frame * side * row + np.concatenate([own // side * row + own % side, ends]))
    return np.concatenate(parts)


def check_dycoke(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """What leaves before the language model; the frames keep their order, and a thinned frame the release's."""
    if params["variant"] != "ttm":
        _dycoke_cache(arrays, params, backend)
        return
    given = {"x": arrays["x"][None]}
    keep = int(arrays["frame_len"].sum())
    found = apply_method(
        "dycoke", given, keep=keep, protect=0, frames=params["frames"], order="score", backend=backend
    )
    equal("kept", found["index"][0], arrays["keep_idx"])
    close("tokens", found["tokens"][0], arrays["y"])


def _dycoke_cache(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The entries of the video that stay, and all others."""
    attention = arrays["attn"]
    keys = np.zeros((*attention.shape[:2], attention.shape[3], 1), np.float32)
    span = {"start": params["image_start"], "length": params["image_len"]}
    kept = len(arrays["kv_keep"])
    found = apply_method(
        "dycoke_cache", {"keys": keys, "attn": attention}, keep=kept, backend=backend, **span
    )
    equal("kept", found["index"][0, 0], np.sort(arrays["kv_keep"]))


CHECKS: Mapping[str, Check] = {"evs": check_evs, "vidcom2": check_vidcom2, "dycoke": check_dycoke}
