"""CTS: pictures of patches as tokens, the recorded logits as two more channels which the policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_cts(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The squares shared and their order; patches that stay; half-resolution patches; where outputs come from."""
    image, side = arrays["image"].astype(np.float64), params["patch_size"]
    batch, colours, height, width = image.shape
    rows, columns = height // side, width // side
    single, double = params["num_scale_1"], params["num_scale_2"]

    def run(patches: Any) -> Mapping[str, Any]:
        logits = np.repeat(np.repeat(arrays["logits"], 2, axis=2), 2, axis=3).reshape(batch, 2, -1)
        x = np.concatenate([patches.reshape(batch, rows * columns, -1), logits.transpose(0, 2, 1)], axis=2)
        policy = np.zeros((2, 4, x.shape[2]), np.float32)
        policy[[0, 1], :, [-2, -1]] = 0.25
        weights = {"policy": policy.reshape(2, -1), "policy_bias": np.zeros(2, np.float32)}
        given = {"x": x, "grid": (rows, columns)}
        return apply_method("cts", given, keep=single + double, protect=0, backend=backend, weights=weights)

    # A patch is rows x columns of pixels; the picture at half resolution is the mean of its four phases.
    split = image.reshape(batch, colours, rows, side, columns, side)
    found = run(split.transpose(0, 2, 4, 1, 3, 5))
    phases = image.reshape(batch, colours, rows // 2, side, 2, columns // 2, side, 2)
    halved = run(phases.transpose(0, 2, 4, 5, 7, 1, 3, 6))
    index = found["index"]
    scale = np.broadcast_to(np.repeat([0, 1], [single, double]), index.shape)
    place = np.stack([scale, index // columns, index % columns], axis=2)
    _places(place, arrays, single)
    tokens = np.concatenate([found["tokens"][:, :single], halved["tokens"][:, single:]], axis=1)
    pictures = tokens[:, :, :-2].reshape(batch, -1, colours, side, side).transpose(0, 2, 3, 1, 4)
    close("patches", pictures.reshape(arrays["patches"].shape), arrays["patches"])
    close("restored", _restored(found["assign"], arrays, params, (rows, columns)), arrays["unmerged"])


def _places(place: Any, arrays: Arrays, single: int) -> None:
    code = arrays["code"].astype(int)
    equal("places", place[:, :, 1:], code[:, :, 1:])
    for name, mask, part, step in (
        ("unshared", arrays["mask1"], place[:, :single], 1),
        ("shared", arrays["mask2"], place[:, single:], 2),
    ):
        found = np.zeros_like(mask)
        for image, rows in enumerate(part):
            found[image, rows[:, 1] // step, rows[:, 2] // step] = 1
        equal(f"mask of {name} tokens", found, mask)


def _restored(assign: Any, arrays: Arrays, params: Mapping[str, Any], grid: tuple[int, int]) -> Any:
    """Outputs copied to their cells; a shared one is drawn at twice its size and cut in four, as the decoder does."""
    side, (rows, columns) = params["feat_patch"], grid
    batch, depth = arrays["feat"].shape[:2]
    feat = arrays["feat"].reshape(batch, depth, side, -1, side).transpose(0, 3, 1, 2, 4)
    found = np.zeros((batch, depth, rows * side, columns * side))
    for image in range(batch):
        for cell, output in enumerate(assign[image]):
            row, column = divmod(cell, columns)
            part = feat[image, output]
            if output >= params["num_scale_1"]:
                large = _doubled(_doubled(part, 1), 2)
                top, left = row % 2 * side, column % 2 * side
                part = large[:, top : top + side, left : left + side]
            found[image, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = part
    return found


def _doubled(data: Any, axis: int) -> Any:
    """Linear interpolation to twice the length, the ends held."""
    index = np.arange(data.shape[axis])
    near = [np.take(data, index, axis=axis)] * 2
    far = [np.take(data, np.clip(index + step, 0, index[-1]), axis=axis) for step in (-1, 1)]
    parts = [0.75 * own + 0.25 * other for own, other in zip(near, far, strict=True)]
    shape = list(data.shape)
    shape[axis] *= 2
    return np.stack(parts, axis=axis + 1).reshape(shape)


CHECKS: Mapping[str, Check] = {"cts": check_cts}
