"""VisPruner, of its authors and as AngelSlim has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method


def check_vispruner(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    given = {"x": arrays["x"], "cls_attn": arrays["cls_attn"]}
    equal("kept", _kept(given, params, params["important_ratio"], "authors", backend), arrays["keep_idx"])


def check_angelslim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The class row from queries and keys, over the patches alone."""
    q, k = arrays["q"].astype(np.float64), arrays["k"].astype(np.float64)
    weight = np.exp(q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5)
    attn = (weight / weight.sum(axis=-1, keepdims=True))[:, :, 0, 1:]
    given = {"x": arrays["x"], "cls_attn": attn}
    found = _kept(given, params, params["important_ratio_of_kept"], "angelslim", backend)
    equal("kept", found, arrays["keep_idx"])


def _kept(given: Arrays, params: Mapping[str, Any], important: float, form: str, backend: str) -> Any:
    options: dict[str, Any] = {"keep": params["K"], "protect": 0, "class_token": True, "backend": backend}
    return apply_method("vispruner", given, important=important, form=form, **options)["index"]


CHECKS: Mapping[str, Check] = {"vispruner": check_vispruner, "angelslim_vispruner": check_angelslim}
