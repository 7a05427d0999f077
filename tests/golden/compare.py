"""How recorded arrays are compared, and the two ways a case can end other than well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TOLERANCE = 1e-4
"""Relative to the largest absolute value of the array, as the manifest recommends."""

Arrays = Mapping[str, Any]
Check = Callable[[Arrays, Mapping[str, Any], str], None]
"""Compares one case with one backend: arrays, parameters, backend."""


class Unsupported(Exception):
    """This version has no method for the case; the text says which one it would take."""


class Mismatch(Exception):
    """What differs, and by how much."""


def with_room(given: Arrays, keep: int) -> dict[str, Any]:
    """Return x [B,N,C] and attn [B,H,N,N], where K = N with one more token, padding to which nothing attends.

    One dropped token and the one that stands for what was dropped leave as many tokens as there were, which
    the methods take for no reduction.
    """
    x, attn = given["x"], given["attn"]
    if x.shape[1] != keep:
        return dict(given)
    around = [(0, 0), (0, 0), (0, 1), (0, 1)]
    size = np.pad(given.get("size", np.ones_like(x[:, :, :1])), [(0, 0), (0, 1), (0, 0)])
    return {"x": np.pad(x, [(0, 0), (0, 1), (0, 0)]), "attn": np.pad(attn, around), "size": size}


def close(what: str, found: Any, wanted: Any) -> None:
    """Raise Mismatch unless the arrays agree within the tolerance."""
    if found.shape != wanted.shape:
        raise Mismatch(f"{what} has shape {list(found.shape)}, recorded is {list(wanted.shape)}")
    error = np.max(np.abs(found - wanted), initial=0) / max(np.max(np.abs(wanted), initial=0), 1e-30)
    if not error <= TOLERANCE:
        raise Mismatch(f"{what} differs by {error:.2g} of its maximum, allowed is {TOLERANCE:g}")


def equal(what: str, found: Any, wanted: Any) -> None:
    """Raise Mismatch unless the integer arrays are the same."""
    if found.shape != wanted.shape or (found != wanted).any():
        raise Mismatch(
            f"{what} differs: {np.sum(found != wanted) if found.shape == wanted.shape else found.shape}"
        )
