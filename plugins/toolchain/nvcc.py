"""What compiles the kernels for GPUs: nvcc, the tools that read machine code, and TensorRT's C++ headers.

Nothing is looked for at import. `look` and `headers(fetch=False)` change nothing; `toolkit` may lay links in the cache,
`headers` may fetch a wheel of headers into it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.plugins.toolchain import wheels

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
"""Compute capabilities, times ten, that the library is built for, as far as nvcc knows them."""

PLACES = ("CUDA_HOME", "CUDA_PATH")
USUAL = Path("/usr/local/cuda")
"""Where the toolkit's own installers leave it; JetPack does so without putting it on PATH."""


@dataclass(frozen=True)
class Toolkit:
    """An nvcc: its release such as 13.0.88, the architectures it knows, its folder, and how it was found."""

    nvcc: Path
    version: str
    known: tuple[int, ...]
    root: Path
    found: str

    @property
    def architectures(self) -> tuple[int, ...]:
        """Those of ARCHITECTURES that this nvcc compiles for."""
        return tuple(arch for arch in ARCHITECTURES if arch in self.known)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Those of ARCHITECTURES that it is too old, or too new, for."""
        return tuple(arch for arch in ARCHITECTURES if arch not in self.known)

    def check(self, asked: Sequence[int]) -> tuple[int, ...]:
        """Return the architectures asked for, ascending, each once.

        Raises: UnsupportedError for one that this nvcc does not compile for.
        """
        unknown = [arch for arch in asked if arch not in self.known]
        if unknown:
            raise UnsupportedError(
                f"nvcc {self.version} ({self.nvcc}) does not compile for sm_{unknown[0]}; it knows "
                f"{', '.join(map(str, self.known))}; leave that one out, or use another CUDA toolkit (CUDA_HOME)"
            )
        return tuple(sorted(set(asked)))

    def tool(self, name: str) -> Path:
        """Return `cuobjdump` or `nvdisasm`: beside nvcc, on PATH, or from a wheel.

        Raises: UnsupportedError where there is none.
        """
        for place in (
            self.nvcc.parent / name,
            self.root / "bin" / name,
            _on_path(name),
            wheels.file(f"bin/{name}"),
        ):
            if place is not None and place.is_file():
                return place
        raise UnsupportedError(
            f"reading machine code needs {name}, which is not beside {self.nvcc} nor on PATH: pip install "
            f"nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or pip install 'tokenrt[cuda]'"
        )


def parse(text: str) -> tuple[int, ...]:
    """Read a list of architectures: `89,90`, `8.9` or `sm_89`. Raises: UnsupportedError for anything else."""
    found = []
    for item in text.split(","):
        digits = item.strip().removeprefix("sm_").replace(".", "")
        if not re.fullmatch(r"\d{2,3}", digits):
            raise UnsupportedError(
                f"{item.strip()!r} is no architecture; give compute capabilities without the dot, such as 89,90"
            )
        found.append(int(digits))
    return tuple(found)


def gencode(architectures: Sequence[int], *, ptx: bool = True) -> tuple[str, ...]:
    """Flags for machine code of each architecture, and PTX of the last, which later GPUs compile on loading."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    if ptx:
        newest = max(architectures)
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return tuple(flags)


def look() -> Toolkit:
    """Return the nvcc there is: of CUDA_HOME, on PATH, in /usr/local/cuda, or from wheels; nothing is changed.

    Raises: UnsupportedError that lists where it was looked for, and what mends it.
    """
    for nvcc, found in _candidates():
        return _described(nvcc, found, nvcc.stat().st_mtime_ns)
    lacking = wheels.lacking()
    told = (
        "no wheels of nvcc in this Python"
        if len(lacking) == len(wheels.PARTS)
        else f"of its wheels {', '.join(lacking)} missing"
    )
    raise UnsupportedError(
        f"compiling for GPUs needs nvcc, and there is none: {' and '.join(PLACES)} not set, not on PATH, not in {USUAL}, "
        f"{told}; pip install 'tokenrt[cuda]', or install the CUDA toolkit and set CUDA_HOME to its folder"
    )


def toolkit() -> Toolkit:
    """Return the nvcc to compile with; that of wheels as a whole prefix of links in the cache.

    Raises: as `look`, and UnsupportedError where the wheels are of different releases.
    """
    found = look()
    if found.found != wheels.FOUND:
        return found
    nvcc = wheels.joined(found.version) / "bin" / "nvcc"
    return _described(nvcc, wheels.FOUND, found.nvcc.stat().st_mtime_ns)


def _candidates() -> Iterator[tuple[Path, str]]:
    for name in PLACES:
        folder = os.environ.get(name)
        if folder:
            nvcc = Path(folder) / "bin" / "nvcc"
            if not nvcc.is_file():
                raise UnsupportedError(
                    f"{name}={folder} has no bin/nvcc; set it to the folder of a CUDA toolkit, or unset it"
                )
            yield nvcc, name
    for place, found in ((_on_path("nvcc"), "PATH"), (USUAL / "bin" / "nvcc", str(USUAL))):
        if place is not None and place.is_file():
            yield place, found
    nvcc_of_wheels = wheels.file("bin/nvcc")
    if nvcc_of_wheels is not None and not wheels.lacking():
        yield nvcc_of_wheels, wheels.FOUND


def _on_path(name: str) -> Path | None:
    place = shutil.which(name)
    return Path(place) if place else None


@functools.cache
def _described(nvcc: Path, found: str, stamp: int) -> Toolkit:
    release = re.search(r"\bV(\d+\.\d+\.\d+)", _told(nvcc, "--version"))
    known = sorted({int(arch) for arch in re.findall(r"sm_(\d+)\b", _told(nvcc, "--list-gpu-code"))})
    if release is None or not known:
        raise BuildError(f"{nvcc} does not answer as nvcc does; is it one, of CUDA 11 or later?")
    # A wrapper on PATH stands in another folder than the toolkit; nvcc itself says where that is.
    top = re.search(r"^#\$ TOP=(.+)$", _told(nvcc, "-dryrun", "-x", "cu", os.devnull), re.MULTILINE)
    root = Path(os.path.normpath(top[1].strip())) if top else nvcc.parent.parent
    return Toolkit(nvcc, release[1], tuple(known), root, found)


def _told(nvcc: Path, *flags: str) -> str:
    try:
        done = subprocess.run([nvcc, *flags], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot run {nvcc}: {error}") from error
    return done.stdout + done.stderr
