"""The table of the kernels: registers, shared memory, occupancy, bytes moved, and the roofline; writes docs/kernels.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import results
from tokenrt.perf.bench.gpu import operator_work, roofline
from tokenrt.plugins.toolchain import device, occupancy
from tokenrt.plugins.toolchain import nvcc as toolchain

BATCHES = (1, 32)


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
class Report:
    """Every kernel for every architecture, and every operator's work on every device."""

    nvcc: str
    rows: Sequence[Row]

    @property
    def architectures(self) -> list[int]:
        return list(self.rows[0].used)

    def as_dict(self) -> dict[str, Any]:
        devices = [roofline.device(name) for name in roofline.DEVICES]
        return {
            "nvcc": self.nvcc,
            "kernels": [row.as_dict() for row in self.rows],
            "block": asdict(operator_work.VIT_B),
            "devices": [asdict(each) for each in devices],
            "operators": [
                {
                    "operator": work.operator,
                    "setting": work.setting,
                    "batch": batch,
                    "launches": len(work.launches),
                    "least_bytes": work.least,
                    "moved_bytes": work.moved,
                    "operations": work.operations,
                    "roofline_us": {each.name: round(1e6 * work.seconds(each), 4) for each in devices},
                }
                for batch in BATCHES
                for work in operator_work.works(batch)
            ],
        }

    def page(self, where: Mapping[str, Any]) -> str:
        """The page: machine code, bytes, roofline."""
        code = (
            "The CUDA kernels of `plugins/kernels`, compiled and not run: `compiled`. Made by `python -m "
            f"tokenrt.perf.bench.gpu.kernels` with nvcc {self.nvcc}. No kernel spills a register or uses the stack, for any "
            "architecture; `tests/plugins/toolchain/test_device.py` checks that, and that rows are read 16 bytes at a time.\n\n"
            "## Machine code\n\nThreads of a block, bytes of shared memory of a block, then for each architecture "
            "registers of a thread and theoretical occupancy in percent (warps a multiprocessor holds at once, of those "
            "it could). A kernel that tiles in registers is meant to run at low occupancy."
        )
        head = ["kernel", "threads:", "shared:", *(f"sm_{arch}:" for arch in self.architectures)]
        moved = (
            "## Bytes\n\nOne block of ViT-B/16 (197 tokens of 768 channels, 12 heads of 64, fp16; points between which "
            "distances are measured are fp32) at batch 1. Least: inputs read once and outputs written once. Moved: what "
            "the launches read and write where a cache serves whatever one launch reads twice, and nothing between "
            "launches."
        )
        bytes_head = ["operator", "setting", "launches:", "least, KB:", "moved, KB:", "ratio:", "MFLOP:"]
        model = (
            "## Roofline\n\nThe least time in microseconds: for each launch its bytes over the device's memory bandwidth or "
            "its operations over the device's fp32 rate, whichever is longer, summed. **A model, not a measurement**: "
            "nothing here ran on a GPU. Starting a launch takes some two microseconds more, which at batch 1 is most of the "
            "time; nor does the bound know that one block an image chooses or merges token by token, so that few images leave "
            "most of a GPU idle. M: bound by memory; A: by arithmetic. The devices' figures are "
            "facts of `targets/*.toml`: "
            f"{self._figures()}."
        )
        time_head = [
            "operator",
            "setting",
            *(f"{name}, batch {n}:" for name in roofline.DEVICES for n in BATCHES),
        ]
        return "\n\n".join(
            [
                "# Kernels", code, results.table(head, [row.cells() for row in self.rows]),
                moved, results.table(bytes_head, [_bytes(work) for work in operator_work.works(1)]),
                model, results.table(time_head, self._times()),
                results.told(where),
            ]
        )  # fmt: skip

    def _times(self) -> list[list[str]]:
        devices = [roofline.device(name) for name in roofline.DEVICES]
        by_batch = list(zip(*(operator_work.works(batch) for batch in BATCHES), strict=True))
        return [
            [
                f"`{same[0].operator}`",
                same[0].setting,
                *(
                    f"{_short(1e6 * work.seconds(each))} {work.bound(each)[0].upper()}"
                    for each in devices
                    for work in same
                ),
            ]
            for same in by_batch
        ]

    def _figures(self) -> str:
        return "; ".join(
            f"{each.name} {each.bandwidth / 1e9:g} GB/s and {each.operations / 1e12:g} TFLOP/s"
            for each in map(roofline.device, roofline.DEVICES)
        )


def _short(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.6f}"


def _bytes(work: roofline.Work) -> list[str]:
    return [
        f"`{work.operator}`", work.setting, str(len(work.launches)), f"{work.least / 1e3:.1f}", f"{work.moved / 1e3:.1f}",
        f"{work.moved / work.least:.2f}", f"{work.operations / 1e6:.2f}",
    ]  # fmt: skip


def run(architectures: Sequence[int]) -> Report:
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
    return Report(nvcc.version, [rows[name] for name in sorted(rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; 2 when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m tokenrt.perf.bench.gpu.kernels", description=__doc__)
    parser.add_argument(
        "--arch", type=toolchain.parse, help="such as 89,90; all that nvcc knows when left out"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of kernels.md and kernels.json"
    )
    try:
        asked = parser.parse_args(arguments)
        report = run(asked.arch or toolchain.toolkit().architectures)
    except TokenrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = results.circumstances(packages=())
    paths = results.write(asked.out, "kernels", {**where, **report.as_dict()}, report.page(where))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
