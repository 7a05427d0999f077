"""Loads a plugin library into the registry of TensorRT-RTX, in a process of its own: prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_rtx_libs  # noqa: F401
from tensorrt_rtx_bindings import tensorrt_rtx as trt

from tokenrt.plugins import load

FIELD_TYPES = {"int32": trt.PluginFieldType.INT32, "float32": trt.PluginFieldType.FLOAT32}


class Logger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


def collection(fields: dict[str, Any]) -> Any:
    made = []
    for name, value in fields.items():
        array = np.atleast_1d(np.asarray(value, np.float32 if isinstance(value, float) else np.int32))
        made.append(trt.PluginField(name, array, FIELD_TYPES[array.dtype.name]))
    return trt.PluginFieldCollection(made)


def main(path: str, nodes: dict[str, dict[str, Any]], bad: dict[str, list[dict[str, Any]]]) -> None:
    logger = Logger()
    builder = trt.Builder(logger)
    registry = builder.get_plugin_registry()
    before = len(registry.all_creators)
    names = load(path, registry)
    load(path, registry)
    creators = [creator for creator in registry.all_creators if creator.plugin_namespace == "tokenrt"]
    phases = (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME)
    capabilities = (
        trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME
    )  # fmt: skip
    made, refused = {}, {}
    for name, fields in nodes.items():
        creator = registry.get_creator(name, "1", "tokenrt")
        plugins = [creator.create_plugin("node", collection(fields), phase) for phase in phases]
        made[name] = all(
            plugin is not None
            and all(plugin.get_capability_interface(one) is not None for one in capabilities)
            for plugin in plugins
        )
    for name, several in bad.items():
        creator = registry.get_creator(name, "1", "tokenrt")
        refused[name] = [
            all(creator.create_plugin("node", collection(fields), phase) is None for phase in phases)
            for fields in several
        ]
    seen = {
        "before": before,
        "names": list(names),
        "creators": [creator.name for creator in creators],
        "fields": {creator.name: [field.name for field in creator.field_names] for creator in creators},
        "made": made,
        "refused": refused,
        "errors": logger.errors,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], *(json.loads(argument) for argument in sys.argv[2:4]))
