"""Compile the kernels for GPUs, once, into the cache: PTX, machine code, and what both say of each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.plugins.toolchain import compiler, nvcc

FLAGS = ("-std=c++17", "-O3", "-Werror=all-warnings", f"-I{compiler.HERE / 'kernels'}")
STRICT = ("-Xptxas=-v,-warn-spills,-warn-lmem-usage",)
"""Spilled registers and use of the stack are warnings, and warnings are errors."""

HOST_WARNINGS = "-Xcompiler=-fPIC,-Wall,-Wextra"
SIZES: Mapping[str, int] = {"8": 1, "16": 2, "32": 4, "64": 8}


@dataclass(frozen=True)
class Entry:
    """A kernel as PTX declares it: its mangled name, the bytes of each parameter, and the threads of a block."""

    symbol: str
    parameters: tuple[int, ...]
    threads: int | None


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel. Units: 32-bit registers a thread, bytes of static shared memory, bytes."""

    symbol: str
    registers: int
    shared: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Compiled:
    """The kernels of a source for one architecture, as machine code, which is a file, and as its compilers tell of them."""

    code: Path
    entries: tuple[Entry, ...]
    usages: tuple[Usage, ...]


def ptx(arch: int, source: Path) -> Path:
    """Return the PTX of a source for one architecture.

    Raises: UnsupportedError without nvcc, or where it does not know the architecture; BuildError on any warning.
    """
    command = (*_nvcc(arch), *FLAGS, "-x=cu", f"-arch=compute_{arch}", "-ptx")
    return compiler.kept(command, [source], f"sm_{arch}.ptx")


def machine_code(arch: int, source: Path) -> Compiled:
    """Return the machine code of a source for one architecture, a cubin, and what each of its kernels uses.

    Raises: as `ptx`; BuildError where a kernel spills registers or uses the stack.
    """
    text = ptx(arch, source)
    command = (*_nvcc(arch), "-Werror=all-warnings", *STRICT, f"-arch=sm_{arch}", "-cubin")
    made = compiler.kept(command, [text], f"sm_{arch}.cubin")
    log = made.with_name(f"{made.name}.log").read_text(encoding="utf-8")
    return Compiled(made, entries(text.read_text(encoding="utf-8")), usages(log))


def kernels(arch: int) -> list[Compiled]:
    """Return every kernel in every type, operator by operator. Raises: as `machine_code`."""
    return compiler.each(lambda source: machine_code(arch, source), compiler.launchers())


def library(architectures: Sequence[int]) -> Path:
    """Return what the host build loads compiled for GPUs: the same functions, on device pointers."""
    flags = (*FLAGS, *STRICT, HOST_WARNINGS, *nvcc.gencode(architectures))
    command = (*_nvcc(*architectures), *flags)
    return compiler.together(
        (*command, "-x=cu", "-c"), (*command, "-shared"), compiler.launchers(), "device.so"
    )


def entries(text: str) -> tuple[Entry, ...]:
    """Read the kernels that a PTX text declares."""
    found = []
    for match in re.finditer(r"\.entry\s+(\S+?)\s*\(([^)]*)\)\s*([^{]*)\{", text):
        threads = re.search(r"\.maxntid\s+(\d+)", match[3])
        found.append(
            Entry(
                match[1],
                tuple(map(_bytes, re.findall(r"\.param\s+([^,]+)", match[2]))),
                threads and int(threads[1]),
            )
        )
    return tuple(found)


def _bytes(parameter: str) -> int:
    """The bytes of a parameter, written as `.u64 name`, `.u64 .ptr .align 1 name` or `.align 4 .b8 name[32]`."""
    kind, count = re.search(r"\.[busf](8|16|32|64)\b", parameter), re.search(r"\[(\d+)\]\s*$", parameter)
    if kind is None:
        raise BuildError(f"cannot read the parameter {parameter.strip()!r} of a kernel in PTX")
    return SIZES[kind[1]] * (int(count[1]) if count else 1)


def usages(log: str) -> tuple[Usage, ...]:
    """Read what `ptxas -v` printed of each kernel."""
    found = []
    for part in re.split(r"Compiling entry function ", log)[1:]:
        symbol = re.match(r"'(\S+)' for", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if symbol is None or frame is None or registers is None:
            raise BuildError(f"cannot read what ptxas printed: {part[:200]}")
        spilled = int(frame[2]) + int(frame[3])
        found.append(
            Usage(symbol[1], int(registers[1]), int(shared[1]) if shared else 0, int(frame[1]), spilled)
        )
    return tuple(found)


def readable(symbols: Sequence[str]) -> dict[str, str]:
    """Mangled name -> `score::few<float, ScorePolicy, true>`, by c++filt, which comes with every C++ compiler.

    Raises: UnsupportedError where it is missing.
    """
    program = shutil.which("c++filt") or shutil.which("llvm-cxxfilt")
    if program is None:
        raise UnsupportedError(
            "reading the kernels' names needs c++filt; install it (Debian: apt install binutils)"
        )
    done = subprocess.run([program], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return {symbol: _short(name) for symbol, name in zip(symbols, done.stdout.splitlines(), strict=True)}


def _short(name: str) -> str:
    """Without the result, the parameters and the project's namespace."""
    name = name.replace("tokenrt::", "").removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and place:
            return name[:place]
    return name


def _nvcc(*architectures: int) -> tuple[str, str]:
    found = nvcc.toolkit()
    found.check(architectures)
    return str(found.nvcc), f"-ccbin={compiler.compiler()}"
