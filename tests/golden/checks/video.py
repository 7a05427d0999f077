"""Video methods: TESTA on frames and patches, TempMe alone and in its block, STA at its three depths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_testa(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Frames merged along the next to last axis of [B,L,T,C], or patches along that of [B,T,L,C]."""
    if params["merging_type"] == "frame":
        _check_frames(arrays, backend)
        return
    first = int(params["class_token"]) + int(params.get("distill_token", False))
    x, y = arrays["x"], arrays["y"]
    frames, after = x.shape[1], y.shape[2]

    def sequence(value: Any) -> Any:
        """One sequence a clip: leading tokens of the first frame, then the patches of all frames."""
        return np.concatenate([value[:, 0, :first], _joined(value[:, :, first:])], axis=1)

    given = {name: sequence(arrays[name]) for name in ("x", "size") if name in arrays}
    given |= {"keys": sequence(arrays["metric"])[:, None]}
    given |= {"grid": (frames, 1, x.shape[2] - first)}
    found = apply_method(
        "testa", given, keep=first + frames * (after - first), protect=first, merge="patches", backend=backend
    )
    close("tokens", found["tokens"], sequence(y))
    close("sizes", found["size"], sequence(arrays["size_out"]))
    offset = np.arange(frames)[:, None] * (after - first)
    equal("map", found["assign"][:, first:], _joined(arrays["assign"][:, :, first:] + offset))


def _check_frames(arrays: Arrays, backend: str) -> None:
    places, frames = arrays["x"].shape[1:3]
    left = arrays["y"].shape[2]
    given = {name: _by_frame(arrays[name]) for name in ("x", "size") if name in arrays}
    given |= {"keys": _by_frame(arrays["metric"])[:, None], "grid": (frames, 1, places)}
    found = apply_method(
        "testa", given, keep=left * places, protect=0, merge="frames", variant="reference", backend=backend
    )
    close("tokens", found["tokens"], _by_frame(arrays["y"]))
    close("sizes", found["size"], _by_frame(arrays["size_out"]))
    wanted = arrays["assign"].swapaxes(1, 2) * places + np.arange(places)
    equal("map", found["assign"], _joined(wanted))


def _joined(value: Any) -> Any:
    return value.reshape(len(value), -1, *value.shape[3:])


def _by_frame(value: Any) -> Any:
    return _joined(value.swapaxes(1, 2))


def check_tempme(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The merging of one clip, or what a block does to neighbouring clips it joins."""
    if params["variant"] == "block":
        _check_joining(arrays, params, backend)
        return
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    given |= {"size": arrays["size"]} if "size" in arrays else {}
    found = apply_method(
        "tempme", given, keep=arrays["y"].shape[1], protect=params["cls_num"], backend=backend
    )
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])
    equal("map", found["assign"], arrays["assign"])
    belongs = found["assign"][:, None] == np.arange(found["size"].shape[1])[None, :, None]
    equal("source matrix", belongs, arrays["source"] == 1)


def _check_joining(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """First on the tokens, with positions added behind the matching, then on the metric, here the tokens again."""
    frames, joined, first = params["frames"], params["M_frame_num"], params["cls_num"]
    removed = params["M_token_num"]
    groups = len(arrays["x_in"]) // joined
    equal("frames", np.array(frames // joined), arrays["frame_num_out"])
    equal("class tokens", np.array(first * joined), arrays["cls_num_out"])
    for group in range(groups):
        clips = range(group * joined, (group + 1) * joined)
        x = _class_first(arrays["x_in"], clips, first)
        sizes = arrays.get("size", np.ones_like(arrays["x_in"][..., :1]))
        options: dict[str, Any] = {"protect": first * joined, "backend": backend, "frames": joined}
        options |= {"join": f"0:{joined}", "metric": "tokens"}
        extra: dict[str, Any] = {}
        if params["frame_pos"]:
            rows = arrays["w_pos"][[clip % frames for clip in clips]]
            extra["weights"] = {"frame_positions": rows}
        given = {"x": x, "size": _class_first(sizes, clips, first)}
        between = apply_method("tempme", given, keep=x.shape[1] - removed[0], **options, **extra)
        tokens = np.array(between["tokens"])
        if params["frame_pos"]:
            tokens[:, : first * joined] += np.repeat(rows, first, axis=0)
            if not removed[0]:
                tokens[:, first * joined :] += np.repeat(rows, arrays["x_in"].shape[1] - first, axis=0)
        given = {"x": tokens, "keys": tokens[:, None], "size": between["size"]}
        kept = tokens.shape[1] - removed[1]
        options |= {"join": "none", "frames": 1, "metric": "keys"}
        found = apply_method("tempme", given, keep=kept, **options)
        close("tokens", found["tokens"][0], arrays["y_block"][group])
        close("sizes", found["size"][0], arrays["size_out"][group])
        equal("count", np.array(kept), arrays["token_num_out"])


def _class_first(value: Any, clips: range, first: int) -> Any:
    parts = [value[clip, :first] for clip in clips] + [value[clip, first:] for clip in clips]
    return np.concatenate(parts)[None]


def check_sta(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """One of the three depths; which one decides in which direction the frames are walked."""
    groups, each = params["T"], params["tokens_per_frame"]
    kept = each - params["r"]
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    found = apply_method(
        "sta",
        given,
        keep=groups * kept,
        protect=0,
        block=params["index"],
        blocks=params["depth"],
        groups=groups,
        backend=backend,
    )
    offset = arrays["frame_of_slot"][None, :, None] * each
    equal("tokens kept", found["index"], (arrays["keep_idx"] + offset).reshape(len(found["index"]), -1))
    close("tokens", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {"testa": check_testa, "tempme": check_tempme, "sta": check_sta}
