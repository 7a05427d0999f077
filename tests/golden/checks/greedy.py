"""Methods that choose tokens one by one: SCOPE, IDPruner, ZOO-Prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method


def _compare(name: str, given: Arrays, arrays: Arrays, backend: str, **options: Any) -> None:
    """What is kept, and in which order it was chosen."""
    options |= {"keep": arrays["keep_idx"].shape[1], "protect": 0, "backend": backend}
    equal("kept", apply_method(name, given, **options)["index"], arrays["keep_idx"])
    chosen = apply_method(name, given, order="score", **options)["index"]
    equal("order of choosing", chosen, arrays["select_order"])


def check_scope(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    given = {"x": arrays["x"], "cls_attn": arrays["cls_attn"]}
    _compare("scope", given, arrays, backend, alpha=params["alpha"], score="class", class_token=True)


def check_idpruner(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    given = {"x": arrays["x"], "importance": arrays["scores"]}
    options = {"balance": params["mmr_lambda"], "parallel": params["parallel_k"]}
    _compare("idpruner", given, arrays, backend, **options)


def check_zoo_prune(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The projector is two linear layers with a GELU between them."""

    def project(op: Any, tokens: Any) -> Any:
        hidden = op("Add", op("MatMul", tokens, arrays["w_0"].T), arrays["w_0_bias"])
        erf = op("Erf", op("Mul", hidden, np.float32(0.5**0.5)))
        active = op("Mul", op("Mul", hidden, 0.5), op("Add", erf, 1.0))
        return op("Add", op("MatMul", active, arrays["w_2"].T), arrays["w_2_bias"])

    options: dict[str, Any] = {
        "projector": project,
        "directions": params["m"],
        "step": params["h"],
        "weights": {"directions": arrays["u"]},
    }
    _compare("zoo_prune", {"x": arrays["x_pre"]}, arrays, backend, **options)


CHECKS: Mapping[str, Check] = {
    "angelslim_scope": check_scope,
    "angelslim_idpruner": check_idpruner,
    "zoo_prune": check_zoo_prune,
}
