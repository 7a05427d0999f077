"""The process a builder runs in: reads a job, writes the engine, answers on standard output.

It is a process of its own because parser and builder crash on some models instead of refusing them: a
crash then costs a message and not the caller. And no plugin library the caller has loaded is in reach of the
parser, which ends the process when a node is named like a registered plugin. It imports nothing of tokenrt.

Standard output is one JSON object a line: {"stage": text} when a stage begins, at the end {"engine": ...}, or
{"parse": ...}, {"build": ...} or {"write": ...} saying why there is none.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

SECOND_CALL = "the output tensors of this new instance will not be queryable"
"""Said of every node of a function that is called twice; it means nothing for the engine."""

LAYERS, LAYER = "Layers:\n", ", LayerType: "
NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
"""How a verbose builder tells what an engine is made of at the end, a line a layer."""


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Parse and build. The job: module, plugins, model, output, capabilities, batch (three or null), workspace, verbose, layers.

    layers: the engine keeps what its layers are made of, and the answer has the nodes of each.
    """
    trt = importlib.import_module(job["module"])
    log = _log(trt, job["verbose"])
    builder = trt.Builder(log)
    for library in job["plugins"]:
        builder.get_plugin_registry().load_library(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    _say({"stage": "parsing"})
    if not parser.parse_from_file(job["model"]):
        return {"parse": [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]}
    config = builder.create_builder_config()
    if job["capabilities"]:
        config.num_compute_capabilities = len(job["capabilities"])
    for index, name in enumerate(job["capabilities"]):
        config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    if job["layers"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"] << 20)
    inputs = [_port(network.get_input(index), job["batch"]) for index in range(network.num_inputs)]
    outputs = [_port(network.get_output(index), None) for index in range(network.num_outputs)]
    if job["batch"] is not None:
        profile = builder.create_optimization_profile()
        for port in inputs:
            if len(port["shapes"]) > 1:
                profile.set_shape(port["name"], *map(tuple, port["shapes"]))
        config.add_optimization_profile(profile)
    _say({"stage": f"building for {', '.join(job['capabilities']) or 'this GPU'}"})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"build": log.of("ERROR", "INTERNAL_ERROR")}
    try:
        with open(job["output"], "wb") as file:
            file.write(plan)
    except OSError as cause:
        return {"write": str(cause.strerror)}
    return {
        "engine": {
            "inputs": inputs,
            "outputs": outputs,
            "warnings": [text for text in log.of("WARNING") if SECOND_CALL not in text],
            "layers": log.layers if job["layers"] else None,
            "options": {
                "workspace_mib": job["workspace"],
                "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
                "optimization_level": int(config.builder_optimization_level),
                "strongly_typed": True,
            },
        }
    }


def _log(trt: Any, verbose: bool) -> Any:
    name = "tensorrt-rtx" if "rtx" in trt.__name__ else "tensorrt"

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: list[tuple[str, str]] = []
            self.layers: list[list[str]] = []

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(LAYERS):
                self.layers = [NODE.findall(layer) for layer in message.splitlines() if LAYER in layer]
            if severity.name not in ("INFO", "VERBOSE"):
                self.heard.append((severity.name, message))
            if verbose:
                print(f"{name} {severity.name.lower()}: {message}", file=sys.stderr)

        def of(self, *severities: str) -> list[str]:
            return list(dict.fromkeys(message for severity, message in self.heard if severity in severities))

    return Log()


def _port(tensor: Any, batch: list[int] | None) -> dict[str, Any]:
    dims = tuple(tensor.shape)
    shapes = [dims]
    if batch is not None and -1 in dims:
        shapes = [tuple(size if dim == -1 else dim for dim in dims) for size in batch]
    return {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shapes": shapes}


def _parser_error(error: Any) -> dict[str, Any]:
    return {
        "node": error.node_name(),
        "index": error.node(),
        "operator": error.node_operator(),
        "functions": [name for name in error.local_function_stack() if name],
        "reason": error.desc(),
    }


def _say(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    _say(run(json.loads(sys.stdin.read())))
