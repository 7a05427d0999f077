"""Methods that choose among the frames of a video at a model's output: EVS, VidCom2, DyCoke."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Unsupported, close, equal
from tokenrt import apply_method


def check_evs(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The mask, or where several media stand in a prompt the mask of each and the positions its tokens keep."""
    if params["variant"] == "placeholder":
        raise Unsupported(
            "how many placeholders a prompt starts with is the host's: the prompt is no part of the graph"
        )
    if params["variant"] == "mask":
        kept = _evs(arrays["x"], params, backend)
        equal("kept", kept, arrays["keep_idx"])
        return
    for number, media in enumerate(params["media"]):
        mask, places = (
            arrays[name if f"{name}_0" not in arrays else f"{name}_{number}"]
            for name in ("keep_mask", "media_pos")
        )
        kept = _evs(arrays[f"x_{number}"], media, backend)
        equal("kept", kept, np.flatnonzero(mask))
        equal(
            "rows and columns of what is kept",
            np.stack(np.unravel_index(kept, _grid(media))[1:]),
            places[:, 1:3].T,
        )
    raise Unsupported(
        "positions of the text around media are the host's; what is kept, and its rows and columns, agree"
    )


def _grid(media: Mapping[str, Any]) -> tuple[int, int, int]:
    frames, height, width = media["thw"]
    merge = media["spatial_merge_size"]
    return frames, height // merge, width // merge


def _evs(x: Any, media: Mapping[str, Any], backend: str) -> Any:
    grid = _grid(media)
    keep = max(grid[1] * grid[2], int(len(x) * (1 - media["q"])))
    found = apply_method("evs", {"x": x[None], "grid": grid}, keep=keep, protect=0, backend=backend)
    return found["index"][0]


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
        raise Unsupported("thinning the cache while decoding is for a later version")
    given = {"x": arrays["x"][None]}
    keep = int(arrays["frame_len"].sum())
    found = apply_method(
        "dycoke", given, keep=keep, protect=0, frames=params["frames"], order="score", backend=backend
    )
    equal("kept", found["index"][0], arrays["keep_idx"])
    close("tokens", found["tokens"][0], arrays["y"])


CHECKS: Mapping[str, Check] = {"evs": check_evs, "vidcom2": check_vidcom2, "dycoke": check_dycoke}
