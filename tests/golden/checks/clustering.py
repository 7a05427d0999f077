"""ATC, K-Medoids, DPC-KNN, TCFormer and Expedit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def rows(data: Any, index: Any) -> Any:
    """Take rows: data [B,N,...], index [B,K]."""
    return data[np.arange(len(data))[:, None], index]


def check_atc(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Clusters are compared in the order of their first tokens: the recorded labels are as the library numbers them."""
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    if "size" in arrays:
        given["size"] = arrays["size"]
    found = apply_method(
        "atc",
        given,
        keep=params["out_tokens"],
        protect=int(params["class_token"]),
        linkage=params["linkage"],
        backend=backend,
    )
    equal("clusters", found["assign"], arrays["assign_canonical"])
    close("tokens", found["tokens"], arrays["y_canonical"])
    close("sizes", found["size"], arrays["size_out_canonical"])
    equal("raw labels", rows(arrays["label_of_canonical"], found["assign"]), arrays["assign"])
    equal(
        "first tokens",
        rows(found["assign"], found["index"]),
        np.arange(params["out_tokens"])[None] + 0 * found["index"],
    )


def check_kmedoids(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The release's rule; recorded weights are given as attention whose columns they are."""
    batch, tokens = arrays["x"].shape[:2]
    for image in range(batch):
        given = {"x": arrays["x"][image : image + 1]}
        options: dict[str, Any] = {"weight": "equal", "start": int(arrays["init_idx"][image, 0])}
        if not params["equal_weight"]:
            column = arrays["token_weight"][image, :, 0]
            given["attn"] = np.broadcast_to(column, (1, 1, tokens, tokens))
            options = {"weight": "received"}
        found = apply_method(
            "kmedoids",
            given,
            keep=params["num_clusters"],
            protect=0,
            variant="reference",
            iterations=params["iters"],
            order="score",
            backend=backend,
            **options,
        )
        equal("medoids", found["index"][0], arrays["keep_idx"][image])
        equal("nearest medoids", found["assign"][0], arrays["assign"][image])
        close("tokens", found["tokens"][0], arrays["y"][image])


def check_dpcknn(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """One stage; the share of each original token in its cluster follows from the weights and the map."""
    options: dict[str, Any] = {"neighbours": params["k_neighbors"]}
    weight = np.ones((*arrays["x"].shape[:2], 1))
    if not params["equal_weight"]:
        options["weights"] = {
            "score_weight": arrays["w_score_weight"],
            "score_bias": arrays["w_score_bias"],
        }
        weight = arrays["token_weight"].astype(np.float64)
    found = apply_method(
        "dpcknn",
        {"x": arrays["x"]},
        keep=params["cluster_num"],
        protect=0,
        variant="reference",
        order="score",
        backend=backend,
        **options,
    )
    equal("centres", found["index"], arrays["centers"])
    equal("clusters", found["assign"], arrays["assign"])
    close("tokens", found["tokens"], arrays["y"])
    equal("map of the original tokens", found["assign"], arrays["idx_token_out"])
    close("shares", shares(weight, found["assign"]), arrays["agg_weight_out"])


def shares(weight: Any, assign: Any) -> Any:
    """Return each token's part [B,N,1] of the weight of its cluster."""
    belongs = assign[:, :, None] == assign[:, None]
    return weight / (belongs @ weight)


def check_tcformer(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Two stages, the second on the outcome of the first; recorded token weights are given as sizes."""
    tokens, origin, part = arrays["x"], None, None
    for stage in ("1", "2"):
        weight = arrays[f"tw{stage}"]
        found = apply_method(
            "dpcknn",
            {"x": tokens, "size": weight},
            keep=params[f"cluster_num{stage}"],
            protect=0,
            variant="reference",
            order="score",
            neighbours=params["k"],
            backend=backend,
        )
        own = shares(weight.astype(np.float64), found["assign"])
        origin, part = (
            (found["assign"], own)
            if origin is None
            else (rows(found["assign"], origin), part * rows(own, origin))
        )
        equal(f"clusters of stage {stage}", found["assign"], arrays[f"assign{stage}"])
        close(f"tokens of stage {stage}", found["tokens"], arrays[f"y{stage}"])
        equal(f"map of stage {stage}", origin, arrays[f"idx_token{stage}"])
        close(f"shares of stage {stage}", part, arrays[f"agg_weight{stage}"])
        tokens = arrays[f"y{stage}"]


def check_expedit(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Centres and labels, then other features of the clusters restored by the weights of the clustering."""
    x = arrays["x"]
    if params["variant"] == "segmenter":
        x = x.transpose(0, 2, 3, 1)
    height, width = params["H"], params["W"]
    found = apply_method(
        "expedit",
        {"x": x.reshape(len(x), height * width, -1), "grid": (height, width)},
        keep=params["h"] * params["w"],
        protect=0,
        rows=params["h"],
        variant=params["variant"],
        iterations=params["n_iters"],
        temperature=params["temperature"],
        window=params["window_size"],
        recon_temperature=params["recon_temperature"],
        recon_k=params["recon_k"],
        restore=True,
        backend=backend,
    )
    close("centres", found["tokens"], arrays["centroids"])
    equal("labels", found["assign"], arrays["assign"])
    close("restored by label", rows(arrays["z"], found["assign"]), arrays["unmerged_naive"])
    close("restored", found["affinity"] @ arrays["z"].astype(np.float64), arrays["unmerged"])
    close("restored centres", found["affinity"] @ found["tokens"], found["restored"])


CHECKS: Mapping[str, Check] = {
    "atc": check_atc,
    "kmedoids": check_kmedoids,
    "dpcknn": check_dpcknn,
    "tcformer": check_tcformer,
    "expedit": check_expedit,
}
