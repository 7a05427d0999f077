"""The least time a device needs for what launches move and compute: a model, no measurement."""

from __future__ import annotations

from dataclasses import dataclass

from tokenrt.errors import TargetError
from tokenrt.targets import load


@dataclass(frozen=True)
class Launch:
    """One launch. Units: bytes read and written, each once; floating-point operations, a multiply-add being two."""

    kernel: str
    reads: float
    writes: float
    operations: float = 0


@dataclass(frozen=True)
class Work:
    """An operator at one setting. Units: bytes of its inputs and outputs, each once."""

    operator: str
    setting: str
    inputs: float
    outputs: float
    launches: tuple[Launch, ...]

    @property
    def least(self) -> float:
        """Bytes that any implementation moves: inputs read once, outputs written once."""
        return self.inputs + self.outputs

    @property
    def moved(self) -> float:
        """Bytes that these launches move, where caches serve what is read again within one and nothing in between."""
        return sum(launch.reads + launch.writes for launch in self.launches)

    @property
    def operations(self) -> float:
        return sum(launch.operations for launch in self.launches)

    def seconds(self, device: Device) -> float:
        """The roofline: each launch waits for its memory or its arithmetic, whichever takes longer."""
        return sum(
            max((launch.reads + launch.writes) / device.bandwidth, launch.operations / device.operations)
            for launch in self.launches
        )

    def bound(self, device: Device) -> str:
        """What most of that time is spent on."""
        memory = sum(
            (launch.reads + launch.writes) / device.bandwidth
            for launch in self.launches
            if (launch.reads + launch.writes) / device.bandwidth >= launch.operations / device.operations
        )
        return "memory" if 2 * memory >= self.seconds(device) else "arithmetic"


@dataclass(frozen=True)
class Device:
    """Units: bytes a second, fp32 operations a second."""

    name: str
    bandwidth: float
    operations: float


DEVICES = ("orin-nano", "l4", "a100", "h100")


def device(name: str) -> Device:
    """The device of a target profile. Raises: TargetError where its profile lacks a figure."""
    target = load(name)
    bandwidth, operations = target.fact("bandwidth_gb_s"), target.fact("vector_tflops", {}).get("fp32")
    if not bandwidth or not operations:
        raise TargetError(
            f"target {name} does not state bandwidth_gb_s and vector_tflops.fp32, which a roofline needs"
        )
    return Device(name, bandwidth * 1e9, operations * 1e12)
