"""The TensorRT plugin library: built by nvcc, described, and loaded into TensorRT."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import DependencyError, TokenrtError, UnsupportedError
from tokenrt.files import atomic
from tokenrt.plugins import contracts
from tokenrt.plugins.toolchain import compiler
from tokenrt.plugins.toolchain import nvcc as toolchain
from tokenrt.plugins.toolchain.compiler import HERE
from tokenrt.plugins.toolchain.headers import Headers, headers

NAME = "libtokenrt_plugins.so"
NAMESPACE, VERSION = "tokenrt", "1"
"""What a node names its plugin by."""

FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")
LINK = ("-shared", "-cudart=static", "-Xlinker=--no-undefined")
"""The runtime of CUDA is part of the library, so that it loads where there is no driver."""

SYMBOL = "tokenrt_plugin_library"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Library:
    """A library that was built: for which architectures, by which nvcc, against which TensorRT."""

    path: Path
    architectures: tuple[int, ...]
    dropped: tuple[int, ...]
    nvcc: str
    tensorrt: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "architectures": list(self.architectures),
            "dropped": list(self.dropped),
            "nvcc": self.nvcc,
            "tensorrt": self.tensorrt,
            "seconds": round(self.seconds, 1),
            "status": "compiled",
        }

    def __rich__(self) -> Any:
        from rich.text import Text

        listed = ", ".join(f"sm_{arch}" for arch in self.architectures)
        lines = [
            f"{self.path}: {self.path.stat().st_size / 2**20:.1f} MiB, compiled by nvcc {self.nvcc} against TensorRT "
            f"{self.tensorrt} in {self.seconds:.0f} s",
            f"machine code for {listed}, PTX of compute_{max(self.architectures)} for later ones",
        ]
        if self.dropped:
            lines.append(
                f"left out, because this nvcc does not know them: {', '.join(map(str, self.dropped))}"
            )
        return Text("\n".join(lines))


def sources() -> tuple[Path, ...]:
    """What the library is made of, what compiles longest first."""
    return (*sorted(HERE.glob("token_*/plugin.cu")), *sorted(HERE.glob("common/*.cpp")))


def build(
    *,
    arch: str | Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    tell: Tell = lambda _: None,
) -> Library:
    """Build the library for the architectures asked for, by default all that this nvcc knows, and write it to `output`.

    arch: compute capabilities without the dot, as text such as `87,89` or as numbers. output: by default
    libtokenrt_plugins.so in the working folder. What was built before is taken from the cache.

    Raises: UnsupportedError without nvcc or headers, or for an architecture that nvcc does not know; BuildError when a
    compiler refuses.
    """
    import time

    start = time.monotonic()
    wanted = toolchain.parse(arch) if isinstance(arch, str) else arch
    nvcc, here = toolchain.toolkit(), headers()
    architectures = nvcc.architectures if wanted is None else nvcc.check(wanted)
    if not architectures:
        raise UnsupportedError("no architecture to build for; name at least one, such as --arch 89")
    dropped = nvcc.dropped if wanted is None else ()
    target = Path(NAME if output is None else output)
    with atomic(target) as temporary:  # refuses a folder that is not there before anything is compiled
        shutil.copyfile(_built(nvcc, here, architectures, tell), temporary)
    took = time.monotonic() - start
    return Library(target, architectures, dropped, nvcc.version, here.version, took)


def _built(nvcc: toolchain.Toolkit, here: Headers, architectures: Sequence[int], tell: Tell) -> Path:
    """The library out of the cache, or of what the cache has of its parts."""
    told = f"cuda {nvcc.version}\\narchitectures {' '.join(map(str, architectures))}\\n"
    command = (str(nvcc.nvcc), *toolchain.gencode(architectures))
    flags = (*FLAGS, f"-I{HERE / 'kernels'}", f"-I{_header(told)}", f"-isystem={here.folder}")
    parts, made = sources(), list[Path]()

    def compiled(source: Path) -> Path:
        part = compiler.kept((*command, *flags, "-c"), [source], "part.o")
        made.append(part)
        tell(f"compiled {len(made)} of {len(parts)}: {compiler.label(source)}")
        return part

    objects = compiler.each(compiled, parts)
    tell("linking")
    return compiler.kept((*command, *LINK), objects, NAME, ["-ldl"])


def _header(told: str) -> Path:
    """A folder with tokenrt_build.h, by which the library can say how it was built."""
    text = f'#define TOKENRT_BUILD "{told}"\n'
    folder = compiler.shelf(hashlib.sha256(text.encode()).hexdigest()[:24])
    with atomic(folder / "tokenrt_build.h") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder


def described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a library says of itself: TensorRT, CUDA, architectures, and what each creator takes; no GPU is touched.

    Raises: TokenrtError for a file that is no library, or not one of ours.
    """
    try:
        loaded = ctypes.CDLL(str(Path(path).resolve(strict=True)))
        ask = getattr(loaded, SYMBOL)
    except (OSError, AttributeError) as error:
        raise TokenrtError(f"{path} is no tokenrt plugin library: {error}") from error
    ask.restype = ctypes.c_char_p
    return _parsed(ask().decode())


def _parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"tensorrt": "", "cuda": "", "architectures": [], "operators": {}}
    own: dict[str, Any] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        if kind == "operator":
            own = found["operators"].setdefault(words[0], {"fields": [], "inputs": [], "outputs": []})
        elif kind == "field":
            own["fields"].append((words[0], words[1], int(words[2]), int(words[3])))
        elif kind in {"input", "output"}:
            own[f"{kind}s"].append(tuple(words))
        else:
            found[kind] = [int(word) for word in words] if kind == "architectures" else words[0]
    return found


@dataclass(frozen=True)
class Info:
    """The operators that have plugins, and either what a library holds or what could be built here."""

    operators: tuple[contracts.Contract, ...]
    library: Path | None
    architectures: tuple[int, ...]
    versions: dict[str, str]
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "namespace": NAMESPACE,
            "version": VERSION,
            "operators": [contract.as_dict() for contract in self.operators],
            "library": None if self.library is None else str(self.library),
            "architectures": list(self.architectures),
            "versions": self.versions,
            "missing": self.missing,
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("operator", "attributes", "kernel", "plugin", "on a GPU", box=None, pad_edge=False)
        for contract in self.operators:
            names = ", ".join(field.name for field in contract.fields)
            table.add_row(
                contract.operator, names, *(contract.status[part] for part in ("kernel", "plugin", "gpu"))
            )
        what = "can be built here" if self.library is None else f"{self.library}, compiled"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        listed = ", ".join(f"sm_{arch}" for arch in self.architectures)
        told = [f"plugins of namespace {NAMESPACE}, version {VERSION}"]
        told.append(
            f"cannot be built here: {self.missing}" if self.missing else f"{what}: {listed}; {versions}"
        )
        return Group(table, Text("\n" + "\n".join(told)))


def info(library: str | os.PathLike[str] | None = None) -> Info:
    """Describe the plugins: those of a library, or those that `build` would make here. Nothing is built or fetched.

    Raises: TokenrtError for a file that is not a tokenrt plugin library.
    """
    listed = contracts.contracts()
    if library is not None:
        told = described(library)
        known = tuple(listed[name] for name in told["operators"] if name in listed)
        built = {"TensorRT": told["tensorrt"], "CUDA": told["cuda"]}
        return Info(known, Path(library), tuple(told["architectures"]), built)
    versions: dict[str, str] = {}
    architectures: tuple[int, ...] = ()
    missing: list[str] = []
    try:
        nvcc = toolchain.look()
        architectures, versions["CUDA"] = nvcc.architectures, nvcc.version
    except TokenrtError as error:
        missing.append(str(error))
    try:
        versions["TensorRT"] = headers(fetch=False).version
    except TokenrtError:
        versions["TensorRT"] = "headers fetched when building"
    return Info(tuple(listed.values()), None, architectures, versions, "; ".join(missing))


def load(library: str | os.PathLike[str], registry: Any = None) -> tuple[str, ...]:
    """Load the library into TensorRT's plugin registry, or into `registry`; returns the operators it brought.

    Loading it again changes nothing. It stays loaded while the registry lives.

    Raises: DependencyError without TensorRT; TokenrtError where it is no plugin library or the registry refuses it.
    """
    path = Path(library)
    wanted = tuple(described(path)["operators"])
    if registry is None:
        try:
            import tensorrt
        except ImportError as error:
            raise DependencyError("tensorrt", "tensorrt", "loading plugins into TensorRT") from error
        registry = tensorrt.get_plugin_registry()
    if not _missing(registry, wanted):
        return wanted
    registry.load_library(str(path.resolve()))
    if lost := _missing(registry, wanted):
        raise TokenrtError(f"TensorRT did not take {', '.join(lost)} from {path}; its log says why")
    return wanted


def _missing(registry: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if registry.get_creator(name, VERSION, NAMESPACE) is None]
