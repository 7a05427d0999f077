"""Compare the methods with vectors recorded from the published implementations.

Run it as a script: `python -m tests.golden.runner`, or `make golden-check`. The vectors lie in the folder
that the environment variable TOKENRT_GOLDEN names, else in ../shared/golden beside the project, else in data/
here (those whose licence allows a copy). One line a method; the exit status is 1 when any case fails, 2 when
there are no vectors.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.block import Block
from tokenrt.errors import TokenrtError
from tokenrt.passes.apply import apply_method

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "data"
BESIDE = HERE.parents[2] / "shared" / "golden"
BACKENDS = ("numpy", "onnxruntime")
TOLERANCE = 1e-4
"""Relative to the largest absolute value of the array, as the manifest recommends."""

Arrays = Mapping[str, Any]


class Unsupported(Exception):
    """This version has no method for the case; the text says which one it would take."""


class Mismatch(Exception):
    """What differs, and by how much."""


@dataclass(frozen=True)
class Outcome:
    """How one case ended: passed, failed or unsupported, and why."""

    method: str
    case: str
    status: str
    reason: str = ""


def folder() -> Path:
    """Return the folder of vectors. Raises: FileNotFoundError when TOKENRT_GOLDEN names none."""
    named = os.environ.get("TOKENRT_GOLDEN")
    if named:
        if not (Path(named) / "manifest.json").is_file():
            raise FileNotFoundError(f"TOKENRT_GOLDEN={named} holds no manifest.json")
        return Path(named)
    return next(path for path in (BESIDE, COMMITTED) if (path / "manifest.json").is_file())


def run(root: Path) -> Iterator[Outcome]:
    """Run every case of every manifest in `root`."""
    for manifest in sorted(root.glob("manifest*.json")):
        listed = json.loads(manifest.read_text())["methods"]
        entries = (
            listed.items() if isinstance(listed, dict) else ((entry["method"], entry) for entry in listed)
        )
        for method, entry in entries:
            cases = entry["cases"]
            for name, case in cases.items() if isinstance(cases, dict) else enumerate(cases):
                yield _run_case(root, method, str(case.get("case", name)), case)


def _run_case(root: Path, method: str, name: str, case: Mapping[str, Any]) -> Outcome:
    if method not in CHECKS:
        return Outcome(method, name, "unsupported", "no such method in this version")
    try:
        with np.load(root / case["file"]) as file:
            arrays = {key: file[key] for key in file.files}
        for backend in BACKENDS:
            CHECKS[method](arrays, case["params"], backend)
    except Unsupported as reason:
        return Outcome(method, name, "unsupported", str(reason))
    except (Mismatch, TokenrtError, KeyError, OSError) as reason:
        return Outcome(method, name, "failed", f"{type(reason).__name__}: {reason}")
    return Outcome(method, name, "passed")


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


def check_tome(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """ToMe's own merging, on its own or inside a whole patched block."""
    if params.get("variant") == "kth":
        raise Unsupported("k-th bipartite matching")
    if params.get("variant") == "block":
        return _check_tome_block(arrays, params, backend)
    protect = int(params["class_token"]) + int(params.get("distill_token", False))
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    sized = given | {"size": arrays["size"]} if "size" in arrays else given
    options: dict[str, Any] = {
        "keep": arrays["y"].shape[1],
        "protect": protect,
        "backend": backend,
        "restore": True,
    }
    found = apply_method("tome", sized, **options)
    _compare_merged(found, arrays)
    close("tokens", found["tokens"], arrays["y"])
    if "unmerged" in arrays:
        close("restored tokens", found["restored"], arrays["unmerged"])
    if "y_mean" in arrays:
        close("plain mean", apply_method("tome", given, **options)["tokens"], arrays["y_mean"])
    return None


def _compare_merged(found: Arrays, arrays: Arrays) -> None:
    equal("map from input to output", found["assign"], arrays["assign"])
    close("sizes", found["size"], arrays["size_out"])
    if "source" in arrays:
        belongs = found["assign"][:, None] == np.arange(found["size"].shape[1])[None, :, None]
        equal("source matrix", belongs, arrays["source"] == 1)


def _check_tome_block(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(
        arrays["x"].astype(np.float64), arrays["size"] if params["prop_attn"] else None
    )
    close("attention branch", branch, arrays["x_attn"])
    close("metric", taps["keys"].mean(1), arrays["metric"])
    given = {"x": arrays["x"] + branch, "keys": taps["keys"], "size": arrays["size"]}
    found = apply_method("tome", given, keep=arrays["y"].shape[1], backend=backend)
    _compare_merged(found, arrays)
    close("block output", block.feed_forward(found["tokens"]), arrays["y"])


def check_tr_tome(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """ToMe as TokenReduction runs it: always proportional attention; the map leaves out the class token."""
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(arrays["x_in"].astype(np.float64), arrays["size"])
    close("metric", taps["keys"].mean(1), arrays["metric"])
    given = {"x": arrays["x_in"] + branch, "keys": taps["keys"], "size": arrays["size"]}
    found = apply_method("tome", given, keep=arrays["y"].shape[1], backend=backend)
    equal("map from patch to output", found["assign"][:, 1:] - 1, arrays["assign"])
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


def check_pruning(method: str) -> Callable[[Arrays, Mapping[str, Any], str], None]:
    """Pruning by class attention: the set kept, then the tokens in recorded order, then the block around them."""

    def check(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
        options: dict[str, Any] = {"keep": arrays["y"].shape[1], "backend": backend, "order": "score"}
        if method == "evit":
            options["fuse"] = bool(params["fuse_token"])
        given = {"x": arrays["x"], "attn": arrays["attn"]}
        close("scores", arrays["attn"][:, :, 0, 1:].mean(1), arrays["scores"])
        found = apply_method(method, given, **options)
        wanted = arrays["keep_idx"] + 1
        kept = found["index"][:, 1:]
        equal("positions kept", np.sort(kept, axis=1), np.sort(wanted, axis=1))
        order = (
            1
            + np.argsort(kept, axis=1)[
                np.arange(len(kept))[:, None], np.argsort(np.argsort(wanted, axis=1), axis=1)
            ]
        )
        tokens = found["tokens"].copy()
        tokens[:, 1 : 1 + kept.shape[1]] = np.take_along_axis(tokens, order[:, :, None], axis=1)
        close("tokens", tokens, arrays["y"])
        _compare_block(method, arrays, params, options, wanted)

    return check


def _compare_block(
    method: str, arrays: Arrays, params: Mapping[str, Any], options: Mapping[str, Any], wanted: Any
) -> None:
    """Start at the block's input: attention from queries and keys must choose the same tokens."""
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(arrays["x_in"].astype(np.float64))
    close("attention", taps["attn"], arrays["attn"])
    given = {"x": arrays["x_in"] + branch, "queries": taps["queries"], "keys": taps["keys"]}
    found = apply_method(method, given, **options)
    equal("positions kept, from queries and keys", np.sort(found["index"][:, 1:]), np.sort(wanted))
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


CHECKS: Mapping[str, Callable[[Arrays, Mapping[str, Any], str], None]] = {
    "tome": check_tome,
    "tr_tome": check_tr_tome,
    "tr_topk": check_pruning("topk"),
    "evit": check_pruning("evit"),
    "tr_evit": check_pruning("evit"),
}


def main() -> int:
    """Print one line a method and the totals."""
    try:
        root = folder()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes = list(run(root))
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.method == method]
        print(f"{method:24s} {_totals(own)}")
        for outcome in own:
            if outcome.status == "failed" or (outcome.status == "unsupported" and method in CHECKS):
                print(f"    {outcome.case}: {outcome.status}: {outcome.reason}")
    print(_totals(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _totals(outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "unsupported"))


if __name__ == "__main__":
    sys.exit(main())
