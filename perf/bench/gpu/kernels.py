"""The table of the kernels: launches, blocks and time by the model of cost, registers and occupancy; writes docs/kernels.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import results
from tokenrt.perf.bench.gpu import costs
from tokenrt.plugins.toolchain import device, occupancy
from tokenrt.plugins.toolchain import nvcc as toolchain


@dataclass(frozen=True)
class Row:
    """A kernel in one form, and what it uses by architecture."""

    kernel: str
    threads: int
    used: Mapping[int, device.Usage]

    def occupancy(self, arch: int) -> float:
        usage = self.used[arch]
        return occupancy.occupancy(arch, self.threads, usage.registers, usage.shared)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "threads": self.threads,
            "architectures": {
                str(arch): {
                    "registers": usage.registers,
                    "shared_bytes": usage.shared,
                    "stack_bytes": usage.stack,
                    "spilled_bytes": usage.spilled,
                    "occupancy": round(self.occupancy(arch), 4),
                }
                for arch, usage in self.used.items()
            },
        }

    def cells(self) -> list[str]:
        """Registers and occupancy by architecture; shared memory is the same on all of them."""
        shared = sorted({usage.shared for usage in self.used.values()})
        each = [f"{self.used[arch].registers} · {100 * self.occupancy(arch):.0f}" for arch in self.used]
        return [f"`{self.kernel}`", str(self.threads), " to ".join(map(str, shared)), *each]


@dataclass(frozen=True)
class Code:
    """Every kernel for every architecture; told: when it was compiled, and by which nvcc."""

    told: str
    rows: Sequence[Row]

    @property
    def architectures(self) -> list[int]:
        return list(self.rows[0].used)

    def as_dict(self) -> dict[str, Any]:
        return {"nvcc": self.told, "kernels": [row.as_dict() for row in self.rows]}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Code:
        """The code that a page written before tells of."""
        rows = [
            Row(
                row["kernel"],
                row["threads"],
                {
                    int(arch): device.Usage(
                        row["kernel"],
                        used["registers"],
                        used["shared_bytes"],
                        used["stack_bytes"],
                        used["spilled_bytes"],
                    )
                    for arch, used in row["architectures"].items()
                },
            )
            for row in told["kernels"]
        ]
        return cls(told["nvcc"], rows)

    def page(self) -> list[str]:
        told = (
            "The CUDA kernels of `plugins/kernels`, not run, as they were when they were compiled by nvcc "
            f"{self.told}: one written later is not in the table. None of them spills a register or uses the stack, for "
            "these architectures; `tests/plugins/toolchain/test_device.py` checks that, and that rows are read 16 bytes at a "
            "time. Threads of a block, bytes of shared memory of a block, then for each architecture registers of a thread and "
            "theoretical occupancy in percent (warps a multiprocessor holds at once, of those it could). A kernel that "
            "tiles in registers is meant to run at low occupancy."
        )
        head = ["kernel", "threads:", "shared:", *(f"sm_{arch}:" for arch in self.architectures)]
        return ["## Machine code", told, results.table(head, [row.cells() for row in self.rows])]


@dataclass(frozen=True)
class Report:
    """The page: what each operator would cost as a plugin, and the machine code of the kernels."""

    code: Code

    def as_dict(self) -> dict[str, Any]:
        return {**self.code.as_dict(), **costs.as_dict()}

    def page(self, where: Mapping[str, Any]) -> str:
        made = "Made by `python -m tokenrt.perf.bench.gpu.kernels`."
        return "\n\n".join(["# Kernels", made, *costs.page(), *self.code.page(), results.told(where)])


def run(architectures: Sequence[int]) -> Code:
    """Compile for each architecture, with what the cache holds, and read what the compiler says.

    Raises: UnsupportedError without nvcc; BuildError where a kernel spills or warns.
    """
    nvcc = toolchain.toolkit()
    found: dict[str, dict[int, device.Usage]] = {}
    threads: dict[str, int] = {}
    for arch in nvcc.check(architectures):
        for part in device.kernels(arch):
            for usage in part.usages:
                found.setdefault(usage.symbol, {})[arch] = usage
            threads |= {entry.symbol: entry.threads or 1024 for entry in part.entries}
    names = device.readable(list(found))
    # Two operators may share a kernel, which then has one row.
    rows = {names[symbol]: Row(names[symbol], threads[symbol], used) for symbol, used in found.items()}
    today = results.circumstances(packages=())["date"]
    return Code(f"{nvcc.version} on {today}", [rows[name] for name in sorted(rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; 2 when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m tokenrt.perf.bench.gpu.kernels", description=__doc__)
    parser.add_argument(
        "--arch", type=toolchain.parse, help="such as 89,90; all that nvcc knows when left out"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of kernels.md and kernels.json"
    )
    parser.add_argument(
        "--keep-code",
        action="store_true",
        help="leave the machine code as kernels.json has it; needs no nvcc",
    )
    try:
        asked = parser.parse_args(arguments)
        if asked.keep_code:
            code = Code.of(json.loads((asked.out / "kernels.json").read_text()))
        else:
            code = run(asked.arch or toolchain.toolkit().architectures)
    except TokenrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report, where = Report(code), results.circumstances(packages=())
    paths = results.write(asked.out, "kernels", {**where, **report.as_dict()}, report.page(where))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
