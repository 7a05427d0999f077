"""The files trtexec writes of an engine that it timed, of both majors: run times, layer times, layers.

Names stand in them unescaped, so control characters are let through and a quote in a name is told as what it is. A file
that is cut short, or is of another kind, is refused: half a profile looks like a fast one.

Sources: trtexec of TensorRT 10.9 and 11.1 (samples/common/sampleReporting.cpp); NVIDIA TensorRT documentation,
"Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import DeviceError

NOT_A_NUMBER = re.compile(r'("(?:timeMs|averageMs|medianMs|percentage)" : )-?(?:nan|inf)\b')
"""As C++ writes it where no layer took any time."""

ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
REFORMAT = re.compile(r"Reformatting CopyNode|^Reformat\b", re.IGNORECASE)
BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d+)(\d\d)(\d\d)\]")


@dataclass(frozen=True)
class Times:
    """Milliseconds of every run, in order: on the GPU alone, and with the transfers."""

    compute: tuple[float, ...]
    latency: tuple[float, ...]


@dataclass(frozen=True)
class LayerTime:
    """Median milliseconds of one layer over the runs under the profiler."""

    name: str
    milliseconds: float


@dataclass(frozen=True)
class Layer:
    """One layer of an engine. `nodes` are the ONNX nodes it was made of, as far as the engine says."""

    name: str
    kind: str = ""
    tactic: str = ""
    nodes: tuple[str, ...] = ()

    @property
    def reformats(self) -> bool:
        """Whether it only moves a tensor to another layout or type."""
        return self.kind == "Reformat" or bool(REFORMAT.search(self.name))


@dataclass(frozen=True)
class Layers:
    """The layers of an engine in the order they run, and its inputs and outputs by name."""

    layers: tuple[Layer, ...]
    tensors: tuple[str, ...]


def release(text: str) -> tuple[int, int, int] | None:
    """The release in the first line trtexec prints, as in "[TensorRT v101303]"; None where it has no such line."""
    found = BANNER.search(text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def read_times(path: Path) -> Times:
    """A file of --exportTimes. Raises: DeviceError."""
    records = _listed(path, "--exportTimes")
    if not records:
        raise _bad(path, "--exportTimes", "it holds no run")
    return Times(
        tuple(_number(path, "--exportTimes", record, "computeMs") for record in records),
        tuple(_number(path, "--exportTimes", record, "latencyMs") for record in records),
    )


def read_profile(path: Path) -> tuple[LayerTime, ...]:
    """A file of --exportProfile: a count of runs, then the layers. Raises: DeviceError."""
    records = _listed(path, "--exportProfile")
    if not records or not isinstance(records[0].get("count"), int):
        raise _bad(path, "--exportProfile", "its first item is not the count of runs")
    if records[0]["count"] < 1 or len(records) < 2:
        raise _bad(path, "--exportProfile", "no run was profiled")
    found = []
    for record in records[1:]:
        if not isinstance(record.get("name"), str):
            raise _bad(path, "--exportProfile", f"an item has no name: {str(record)[:80]}")
        # Before 8.6 there was no median.
        key = "medianMs" if "medianMs" in record else "averageMs"
        found.append(LayerTime(record["name"], _number(path, "--exportProfile", record, key)))
    return tuple(found)


def read_layers(path: Path) -> Layers:
    """A file of --exportLayerInfo. Raises: DeviceError, also for an engine that kept no more than names."""
    option = "--exportLayerInfo"
    content = _content(path, option)
    if not isinstance(content, dict) or not isinstance(content.get("Layers"), list):
        raise _bad(path, option, "it has no list of Layers")
    if not content["Layers"]:
        raise _bad(path, option, "it lists no layer; the engine was built with --profilingVerbosity=none")
    tensors = content.get("I/O Tensors", content.get("Bindings"))
    if not isinstance(tensors, list):
        raise _bad(path, option, "it has neither Bindings, as of 10.x, nor I/O Tensors, as of 11.x")
    names: list[Any] = [tensor.get("Name") if isinstance(tensor, dict) else tensor for tensor in tensors]
    if not all(isinstance(name, str) for name in names):
        raise _bad(path, option, "an input or output has no name")
    return Layers(tuple(_layer(path, layer) for layer in content["Layers"]), tuple(names))


def _layer(path: Path, layer: Any) -> Layer:
    if isinstance(layer, str):
        return Layer(layer)
    if not isinstance(layer, dict) or not isinstance(layer.get("Name"), str):
        raise _bad(path, "--exportLayerInfo", f"a layer has no name: {str(layer)[:80]}")
    nodes = ONNX_NODE.findall(str(layer.get("Metadata", "")))
    return Layer(
        layer["Name"], str(layer.get("LayerType", "")), str(layer.get("TacticName", "")), tuple(nodes)
    )


def _listed(path: Path, option: str) -> list[Mapping[str, Any]]:
    content = _content(path, option)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise _bad(path, option, "expected a list of objects")
    return content


def _content(path: Path, option: str) -> Any:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        return json.loads(NOT_A_NUMBER.sub(r"\1NaN", text), strict=False)
    except OSError as cause:
        raise _bad(path, option, f"it cannot be read ({cause.strerror})") from cause
    except ValueError as cause:
        where = "it is empty" if not text.strip() else f"it breaks off or is no JSON ({cause})"
        hint = "; a name with a quote or backslash does that too" if '"' in text else ""
        raise _bad(path, option, where + hint) from cause


def _number(path: Path, option: str, record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(path, option, f"{key} is {value!r} in {str(record)[:80]}")
    return 0.0 if value != value else float(value)


def _bad(path: Path, option: str, reason: str) -> DeviceError:
    return DeviceError(f"{path.name} is not what trtexec writes with {option}: {reason}")
