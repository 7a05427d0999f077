"""The CUDA toolkit out of PyPI's wheels, joined into one prefix of links.

The wheels unpack side by side into `nvidia/cu13`, perhaps in several places of one Python, without the link names that
linking needs, and pip mixes their releases freely. Joined they look as an installed toolkit does.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.plugins.toolchain.compiler import cache

FOUND = "wheels"

PARTS: Mapping[str, str] = MappingProxyType(
    {
        "nvidia-cuda-nvcc": "bin/nvcc",
        "nvidia-nvvm": "nvvm/bin/cicc",
        "nvidia-cuda-crt": "include/crt/host_config.h",
        "nvidia-cuda-runtime": "include/cuda_runtime.h",
        "nvidia-cuda-cccl": "include/cccl",
    }
)
"""Wheels that compiling needs -> a file by which each is known."""

JOINED = ("bin", "include", "lib", "nvvm")
"""Folders whose entries are linked, one by one."""


def roots() -> Iterator[Path]:
    """The folders into which wheels of CUDA unpack, newest major first."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found = [path for path in Path(place).glob("cu[0-9]*") if path.is_dir()]
        yield from sorted(found, key=lambda path: int(path.name.removeprefix("cu")), reverse=True)


def file(name: str) -> Path | None:
    """Return a file of the wheels by its place in a toolkit, such as `bin/ptxas`; None where no wheel has it."""
    return next((root / name for root in roots() if (root / name).exists()), None)


def lacking() -> tuple[str, ...]:
    """The wheels that compiling needs and that are not installed."""
    return tuple(package for package, name in PARTS.items() if file(name) is None)


def releases() -> dict[str, str]:
    """Package -> release of the wheels that must agree, such as 13.0; one that pip does not know is left out."""
    found = {}
    for package in PARTS:
        try:
            found[package] = ".".join(metadata.version(package).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return found


def joined(version: str) -> Path:
    """Return the prefix with everything that the wheels hold, laid now unless the cache has it.

    Raises: UnsupportedError where wheels are of different releases; BuildError where the cache cannot be written.
    """
    release = ".".join(version.split(".")[:2])
    _agree(release)
    folders = list(roots())
    key = hashlib.sha256("\0".join([version, *map(str, folders)]).encode())
    names = {name: path for folder in reversed(folders) for name, path in _entries(folder)}
    key.update("\0".join(f"{name}={path}" for name, path in sorted(names.items())).encode())
    target = cache() / f"cuda-{version}-{key.hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / "cuda"
            _lay(made, names)
            try:
                made.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same links
                    raise
    except OSError as error:
        raise BuildError(f"cannot lay links to nvcc in {target}: {error}; set TOKENRT_CACHE") from error
    return target


def _agree(release: str) -> None:
    """NVIDIA's headers refuse an nvcc of another release, some with an error and some silently."""
    told = releases()
    # CCCL numbers its releases by itself from 13.3 on: 13.3.5 came with 13.5.
    others = {package: number for package, number in told.items() if package != "nvidia-cuda-cccl"}
    if all(number == release for number in others.values()):
        return
    wanted = others.get("nvidia-cuda-runtime", release)  # torch and others pin this one
    mend = " ".join(f"'{package}=={wanted}.*'" for package in others)
    raise UnsupportedError(
        f"the wheels of the CUDA toolkit are of different releases: "
        f"{', '.join(f'{package} {number}' for package, number in others.items())}; nvcc and its headers must agree: "
        f"pip install {mend}"
    )


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    for name in JOINED:
        for path in sorted((folder / name).iterdir()) if (folder / name).is_dir() else ():
            yield f"{name}/{path.name}", path


def _lay(prefix: Path, names: Mapping[str, Path]) -> None:
    for name, path in names.items():
        link = prefix / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        plain = re.fullmatch(r"(lib/lib.+\.so)\.[\d.]+", name)
        if plain and plain[1] not in names:
            (prefix / plain[1]).symlink_to(path)
    (prefix / "lib64").symlink_to("lib")
