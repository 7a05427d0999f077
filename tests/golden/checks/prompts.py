"""Methods inside a language model: SparseVLM and its second version, CoreMatching, HoliTom, AIM, MustDrop; LRS-VQA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_sparsevlm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Raters, kept tokens, and the clusters behind them."""
    first, count = params["vis_start"], params["vis_len"]
    span, behind = slice(first, first + count), slice(first + count, None)
    given = {
        "x": arrays["hidden1"][:, span],
        "input_stream": arrays["hidden0"][:, span],
        "text": arrays["hidden0"][:, behind],
        "text_attn": arrays["attn_text_rows"][..., span],
    }
    keep = arrays["y"].shape[1]
    found = apply_method("sparsevlm", given, keep=keep, protect=0, backend=backend)
    equal("raters", np.flatnonzero(found["state_raters"][0]), arrays["text_rater_idx"][0])
    equal("kept", found["index"][:, : params["K"]], arrays["keep_idx"])
    equal(
        "clustered", np.flatnonzero(found["assign"][0] >= params["K"]), np.sort(arrays["merge_candidates"][0])
    )
    close("tokens", found["tokens"], arrays["y"])


def check_sparsevlm_plus(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """With the raters given, as a site before hands them on."""
    first, count, width = params["vis_start"], params["vis_len"], params["head_dim"]
    attention = arrays["attn_text_rows"][..., first : first + count]
    batch, heads, words = attention.shape[:3]
    raters = np.zeros((batch, words), np.float32)
    raters[:, arrays["text_rater_idx"][0]] = 1
    given = {
        "x": arrays["relation"][..., None],
        "text_attn": attention,
        "keys": np.zeros((batch, heads, count, width), np.float32),
    }
    options: dict[str, Any] = {"version": "2", "heads": params["num_heads_kept"], "backend": backend}
    state = {"raters": raters}
    found = apply_method("sparsevlm", given, keep=params["K"], protect=0, state=state, **options)
    equal("kept", found["index"], arrays["keep_idx"])
    equal("places", found["state_places"], arrays["keep_idx"])


def check_corematching(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """As many as the elbow left."""
    states = arrays["states"].astype(np.float64)
    gate = states @ arrays["w_gate"].T
    neurons = (gate / (1 + np.exp(-gate)) * (states @ arrays["w_up"].T)).astype(np.float32)
    first, count = params["vis_start"], params["vis_len"]
    given = {"x": arrays["score"][..., None], "neurons": neurons[:, first : first + count]}
    given["text_neurons"] = neurons[:, first + count :]
    found = apply_method("corematching", given, keep=params["K"], protect=0, backend=backend)
    equal("kept", found["index"], arrays["keep_idx"])


def check_holitom(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The words are protected tokens in front, which take nothing in."""
    first, count = params["image_start"], params["image_len"]
    tokens = arrays["x"].shape[1]
    words = np.array([place for place in range(tokens) if not first <= place < first + count])
    order = np.concatenate([words, np.arange(first, first + count)])
    given = {"x": arrays["x"][:, order], "last_attn": arrays["attn"][:, :, -1, order]}
    keep = arrays["y"].shape[1]
    found = apply_method("holitom_inner", given, keep=keep, protect=len(words), backend=backend)
    places = order[found["index"][0]]
    equal("kept", np.sort(places), arrays["keep_idx"])
    close("tokens", found["tokens"][:, np.argsort(places)], arrays["y"])
    dropped = np.array([place for place in range(first, first + count) if place not in arrays["keep_idx"]])
    where = np.argsort(order)[dropped]
    equal("joined", places[found["assign"][0, where]], arrays["merge_to"])


def check_aim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """All tokens of the sequence, the words in front; what left before is padding."""
    logits = arrays["logits_allowed"].astype(np.float64)
    tokens = logits.shape[-1]
    logits[..., np.triu_indices(tokens, 1)[0], np.triu_indices(tokens, 1)[1]] = -np.inf
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    attn = weight / weight.sum(-1, keepdims=True)
    first, count = params["vis_start"], params["vis_len"]
    words = np.array([place for place in range(tokens) if not first <= place < first + count])
    order = np.concatenate([words, np.arange(first, first + count)])
    given = {
        "x": arrays["importance"][:, order, None],
        "attn": attn[:, :, order][..., order].astype(np.float32),
        "size": arrays["attention_mask"][:, order, None].astype(np.float32),
    }
    kept = arrays["keep_idx"].shape[1]
    found = apply_method(
        "aim_pagerank",
        given,
        keep=len(words) + kept,
        protect=len(words),
        temperature=params["tau"],
        iterations=params["iters"],
        backend=backend,
    )
    equal("kept", found["index"][:, len(words) :] - len(words), arrays["keep_idx"])


def check_mustdrop(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """As many as the thresholds and the key set left."""
    attention = arrays["attn_text_rows"]
    tokens = attention.shape[-1]
    keys = np.zeros((1, tokens), np.float32)
    keys[:, arrays["key_set"]] = 1
    options = {"all": params["global_thr"], "one": params["individual_thr"], "backend": backend}
    given = {"x": keys[..., None], "text_attn": attention, "importance": keys}
    share = len(arrays["key_set"]) / tokens
    found = apply_method("mustdrop_dual", given, keep=params["K"], protect=0, share=share, **options)
    equal("kept", found["index"], arrays["keep_idx"])
    equal("key set", np.flatnonzero(found["state_keys"][0]), np.sort(arrays["key_set_new"][0]))


def check_lrs_vqa(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """As many as a share or a threshold left, newlines among them; what is masked is padding."""
    given = {"x": arrays["x"], "importance": arrays["attn"]}
    if "mask" in arrays:
        given["size"] = arrays["mask"][None, :, None].astype(np.float32)
    by_share = params["variant"] == "ratio"
    keep = params["K"] if by_share else arrays["y"].shape[1]
    found = apply_method(
        "lrs_vqa", given, keep=keep, protect=0, row=params["tokens_per_row"], backend=backend
    )
    if by_share:
        equal("kept", found["index"], arrays["keep_idx"])
    else:
        close("tokens", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {
    "sparsevlm": check_sparsevlm,
    "sparsevlm_plus": check_sparsevlm_plus,
    "corematching": check_corematching,
    "holitom_inner": check_holitom,
    "lrs_vqa": check_lrs_vqa,
}
