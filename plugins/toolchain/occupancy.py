"""Theoretical occupancy: how many warps of a kernel a multiprocessor holds at once, out of those it could."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

WARP = 32
REGISTERS = 65536
"""32-bit registers of a multiprocessor, on every architecture since 3.5."""

PARTS = 4
"""Schedulers of a multiprocessor, each with its own quarter of the registers."""

REGISTER_UNIT, SHARED_UNIT = 256, 128
"""Registers are given to a warp, and shared memory to a block, in multiples of these."""


@dataclass(frozen=True)
class Multiprocessor:
    """What one holds. Units: threads, blocks, KiB of shared memory, bytes of it that each block costs besides its own."""

    threads: int
    blocks: int
    shared: int
    reserved: int = 1024


LIMITS: Mapping[int, Multiprocessor] = MappingProxyType(
    {
        75: Multiprocessor(1024, 16, 64, reserved=0),
        80: Multiprocessor(2048, 32, 164),
        86: Multiprocessor(1536, 16, 100),
        87: Multiprocessor(1536, 16, 164),
        89: Multiprocessor(1536, 24, 100),
        90: Multiprocessor(2048, 32, 228),
        100: Multiprocessor(2048, 32, 228),
        103: Multiprocessor(2048, 32, 228),
        110: Multiprocessor(1536, 24, 228),
        120: Multiprocessor(1536, 24, 100),
        121: Multiprocessor(1536, 24, 100),
    }
)
"""Architecture -> its multiprocessor. Source: CUDA C++ Programming Guide, technical specifications per compute capability;
blocks also cuda_occupancy.h of CUDA 13.0."""


def blocks(arch: int, threads: int, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor holds at once.

    Units: threads a block, registers a thread, bytes of shared memory a block.
    Source: cuda_occupancy.h of the CUDA toolkit.
    """
    has = LIMITS[arch]
    warps = -(-threads // WARP)
    by_registers = has.blocks
    if registers:
        a_warp = _up(registers * WARP, REGISTER_UNIT)
        by_registers = REGISTERS // PARTS // a_warp * PARTS // warps
    taken = _up(shared + has.reserved, SHARED_UNIT)
    by_shared = has.shared * 1024 // taken if taken else has.blocks
    return min(has.threads // WARP // warps, has.blocks, by_registers, by_shared)


def occupancy(arch: int, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that are resident, 0 to 1. Units: as `blocks`."""
    warps = -(-threads // WARP)
    return blocks(arch, threads, registers, shared) * warps / (LIMITS[arch].threads // WARP)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
