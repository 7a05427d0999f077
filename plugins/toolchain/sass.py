"""Read the machine code of kernels: their instructions, and which of them stand in loops."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenrt.errors import BuildError
from tokenrt.plugins.toolchain import nvcc


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, its name with what modifies it such as LDG.E.128.CONSTANT, and the rest."""

    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"\b0x([0-9a-f]+)\s*$", self.operands) if self.name.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @property
    def bits(self) -> int:
        """How wide an access to memory is; 0 for what is none."""
        if not re.match(r"(LDGSTS|(LD|ST)[GSL]?)\b", self.name):
            return 0
        found = re.search(r"\.[US]?(8|16|64|128)\b", self.name)
        return int(found[1]) if found else 32


def listing(code: Path, arch: int | None = None) -> dict[str, tuple[Instruction, ...]]:
    """Return the instructions of each kernel of a cubin, or of a library for one architecture, by its mangled name.

    Raises: UnsupportedError without cuobjdump; BuildError when it cannot read the file.
    """
    program = nvcc.toolkit().tool("cuobjdump")
    chosen = () if arch is None else ("-arch", f"sm_{arch}")
    done = subprocess.run([program, "-sass", *chosen, code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{program} cannot read {code}: {done.stderr.strip()}")
    return read(done.stdout)


def read(text: str) -> dict[str, tuple[Instruction, ...]]:
    """Read what `cuobjdump -sass` prints."""
    found: dict[str, tuple[Instruction, ...]] = {}
    for part in re.split(r"Function : ", text)[1:]:
        lines = re.findall(
            r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);",
            part,
            re.MULTILINE,
        )
        found[part.split(maxsplit=1)[0]] = tuple(
            Instruction(int(address, 16), name, operands.strip()) for address, name, operands in lines
        )
    return found


def loops(code: Sequence[Instruction]) -> tuple[range, ...]:
    """The addresses of each loop: from where a branch goes back to, up to the branch.

    A branch to itself, with which each kernel is padded, is none.
    """
    return tuple(
        range(line.target, line.address + 1)
        for line in code
        if line.target is not None and line.target < line.address
    )


def looped(code: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The instructions that stand in a loop."""
    found = loops(code)
    return tuple(line for line in code if any(line.address in loop for loop in found))
