"""Methods that choose entries of a cache: SnapKV, H2O, Keyformer, Locret, TokenButler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_snapkv(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    found = apply_method(
        "snapkv",
        {"keys": arrays["k"], "queries": arrays["q_window"]},
        keep=params["max_capacity_prompt"],
        window=params["window_size"],
        kernel=params["kernel_size"],
        pool=params["pooling"].removesuffix("pool").replace("avg", "mean"),
        backend=backend,
    )
    if params["pooling"] == "avgpool":
        equal("kept", found["index"], arrays["keep_idx_sorted"])
        return
    # Neighbours of a maximum have equal scores, of which torch takes any: the scores of what is kept are the same.
    score = _most(arrays["k"], arrays["q_window"], params["kernel_size"])
    kept, wanted = found["index"], arrays["keep_idx_sorted"]
    window = params["window_size"]
    equal("window", kept[..., -window:], wanted[..., -window:])
    rated = [
        np.sort(np.take_along_axis(score, each[..., :-window], axis=2), axis=2) for each in (kept, wanted)
    ]
    close("scores of what is kept", *rated)


def _most(keys: Any, queries: Any, kernel: int) -> Any:
    """Attention of the last tokens to the entries before them, added up, the largest among neighbours: [B,H,N-W]."""
    window, tokens = queries.shape[2], keys.shape[2]
    logits = queries.astype(np.float64) @ keys.swapaxes(2, 3) * keys.shape[3] ** -0.5
    hidden = np.arange(tokens)[None] > np.arange(tokens - window, tokens)[:, None]
    weight = np.where(hidden, 0, np.exp(logits - logits.max(-1, keepdims=True)))
    score = (weight / weight.sum(-1, keepdims=True)).sum(2)[..., : tokens - window]
    around = np.pad(score, [(0, 0), (0, 0), (kernel // 2, kernel // 2)])
    return np.lib.stride_tricks.sliding_window_view(around, kernel, axis=2).max(-1)


def check_h2o(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Both releases: the one that drops, and the one that masks, whose mask is that of the next token."""
    heavy, recent = params["hh_size"], params["recent_size"]
    keys = np.zeros((*arrays["attn"].shape[:3], 1), np.float32)
    given = {"keys": keys, "attn": arrays["attn"]}
    found = apply_method("h2o", given, keep=heavy + recent, recent=recent, backend=backend)
    equal("kept", found["index"], arrays["keep_idx"])
    kept = np.take_along_axis(arrays["scores"], arrays["keep_idx"][0], axis=1)
    close("sums", found["state_score"][0], kept)
    options: dict[str, Any] = {"recent": recent, "form": "mask", "backend": backend}
    masked = apply_method("h2o", given, keep=heavy + recent - 1, **options)
    equal("mask", _mask(masked["index"], keys.shape[2]), arrays["mask_next"])


def _mask(index: Any, tokens: int) -> Any:
    """[H,N+1]: 1 for the entries that stay, and for the token to come."""
    mask = np.zeros((index.shape[1], tokens + 1), np.int64)
    np.put_along_axis(mask, index[0], 1, axis=1)
    mask[:, -1] = 1
    return mask


def check_keyformer(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    tokens = arrays["k"].shape[2]
    required = int(tokens * params["kv_cache"] / 100)
    found = apply_method(
        "keyformer",
        {"keys": arrays["k"], "queries": arrays["q"], "noise": arrays["gumbel"]},
        keep=required - 1,
        recent=params["recent"] / 100,
        start=params["tau_init"],
        step=params["tau_delta"],
        noise="input",
        form="mask",
        backend=backend,
    )
    mask = _mask(found["index"], tokens)
    equal("mask", mask, arrays["mask_next"])
    equal("count", mask.sum(axis=1), arrays["keep_count"])
    score = np.take_along_axis(arrays["score_masked"], found["index"][0], axis=1)
    close("scores", found["state_score"][0], score)


def check_locret(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    tokens, heads = arrays["score"].shape[1:]
    width = arrays["k"].shape[2] // heads

    def split(rows: Any) -> Any:
        return rows.reshape(1, tokens, -1, width).transpose(0, 2, 1, 3)

    found = apply_method(
        "locret",
        {"keys": split(arrays["k"]), "queries": split(arrays["q"]), "values": split(arrays["v"])},
        keep=min(params["budget_size"], tokens - 1),
        stable=0 if params["last_chunk"] else params["stabilizers"],
        weights={"fc1": arrays["w_fc1"], "fc2": arrays["w_fc2"]},
        backend=backend,
    )
    equal("kept", found["index"], arrays["keep_idx"])
    score = arrays["score"].transpose(0, 2, 1)
    close("scores", found["state_score"], np.take_along_axis(score, found["index"], axis=2))


ROWS = 7
"""Every seventh token, of those that are to see some of the entries; its row is what it is given of the cache."""


def check_tokenbutler(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Each token's row of the mask is the choice for it; thresholds leave a head at a time a count of its own."""
    queries, keys, mask = arrays["q_importance"], arrays["k_importance"], arrays["keep_mask"]
    product = queries.astype(np.float64) @ keys.swapaxes(2, 3)
    close("importance", product * keys.shape[3] ** -0.5, arrays["importance"])
    share = params["sparse_aggression"]
    for row in range(ROWS, queries.shape[2], ROWS):
        for head in range(queries.shape[1]):
            wanted = np.flatnonzero(mask[0, head, row])
            if share and not params["min_sparse_index"]:
                equal(
                    "count",
                    np.array(len(wanted)),
                    np.array(math.ceil(np.float32(row + 1) * np.float32(share))),
                )
            if len(wanted) > row:
                continue
            given = {
                "keys": keys[:, head : head + 1, : row + 1],
                "queries": queries[:, head : head + 1, row : row + 1],
            }
            found = apply_method(
                "tokenbutler", given, keep=len(wanted), first=params["min_sparse_index"], backend=backend
            )
            equal(f"kept for token {row}", found["index"][0, 0], wanted)


CHECKS: Mapping[str, Check] = {
    "snapkv": check_snapkv,
    "h2o": check_h2o,
    "keyformer": check_keyformer,
    "locret": check_locret,
    "tokenbutler": check_tokenbutler,
}
