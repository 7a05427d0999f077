"""What a library compiled here holds, by name: where its functions lie, and the variables that stand for shared memory."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tokenrt.errors import UnsupportedError

READERS = ("nm", "llvm-nm")
"""Programs that list the symbols of a library, one of which comes with each compiler."""

FUNCTIONS, VARIABLES = "tTwW", "bBdDuV"


@functools.cache
def functions(library: Path) -> Mapping[int, str]:
    """Where each function of the library lies, from its beginning -> its name, without its parameters.

    Raises: UnsupportedError without a program that lists symbols.
    """
    found = {place: bare(name) for place, _, kind, name in _listed(library) if kind in FUNCTIONS}
    return MappingProxyType(found)


@functools.cache
def shared(library: Path) -> tuple[tuple[int, int], ...]:
    """Place and bytes of every variable that a kernel, or a function of one, declares as shared; none without such a program.

    On a CPU these are static variables of functions, and nothing else in the kernels is.
    """
    try:
        listed = [*_listed(library)]
    except UnsupportedError:
        return ()
    return tuple(
        (place, size)
        for place, size, kind, name in listed
        if kind in VARIABLES and name.startswith("tokenrt::") and ")::" in name
    )


def _listed(library: Path) -> Iterator[tuple[int, int, str, str]]:
    """Place, bytes, kind and name of each symbol that is defined."""
    reader = next(filter(None, map(shutil.which, READERS)), None)
    if reader is None:
        raise UnsupportedError(
            f"naming what the host build holds needs one of {', '.join(READERS)} on PATH; install binutils"
        )
    done = subprocess.run(
        [reader, "-C", "-S", "--defined-only", library], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        place, _, rest = line.partition(" ")
        first, _, last = rest.partition(" ")
        size, kind, name = (first, *last.split(" ", 1)) if len(first) > 1 else ("0", first, last)
        yield int(place, 16), int(size, 16), kind, name


def bare(name: str) -> str:
    """`void tokenrt::match::arrange<1>(int const*)` -> `match::arrange<1>`."""
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not name.startswith("(anonymous", at):
            name = name[:at]
            break
    return name.removeprefix("void ").replace("tokenrt::", "")
