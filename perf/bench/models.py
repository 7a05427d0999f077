"""Models that the benchmarks measure: exported once with seeded random weights and kept outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tokenrt.errors import TokenrtError

DEIT_TI = "timm:deit_tiny_patch16_224"
DEIT_S = "timm:deit_small_patch16_224"
VIT_L = "timm:vit_large_patch16_224"
VIT_H = "timm:vit_huge_patch14_224"
OPSET = 18


def cache() -> Path:
    """Where they are kept: TOKENRT_CACHE, else `tokenrt` in XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("TOKENRT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(shared) / "tokenrt"


def exported(source: str) -> Path:
    """The file of a model, exported on the first call.

    The export runs in a process of its own, so that its memory is gone when a measurement starts.
    Raises: TokenrtError with the last line of the export where it fails, as without timm.
    """
    folder = cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source.replace(':', '-')}-opset{OPSET}.onnx"
    if path.exists():
        return path
    print(f"exporting {source} to {path}", file=sys.stderr)
    code = (
        f"import sys, tokenrt; tokenrt.export(sys.argv[1], sys.argv[2], opset={OPSET}, random_weights=True)"
    )
    command = [sys.executable, "-c", code, source, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TokenrtError(
            f"cannot export {source}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return path


def bytes_of(path: Path) -> int:
    """Bytes of a model's file and of the weights beside it."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
