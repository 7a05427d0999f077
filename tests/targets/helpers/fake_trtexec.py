"""Stands in for trtexec: strict about its arguments, and writes what either major writes, well or badly.

FAKE_RELEASE is the release it plays, as "10.3.0". FAKE_FAULTS are words with blanks between: what goes wrong. Its engine is
its layers as JSON, padded to FAKE_ENGINE_MIB. Like trtexec it looks at no error when it writes its reports.

    fail-build, fail-run, hang, hang-run, no-start     end like that
    liar, unread                                       end well without having passed, or without having read the engine
    truncate:KIND, empty:KIND, missing:KIND, garbage:KIND, nan    a bad file; KIND is engine, times, profile or layers
    quotes                                             names with quotes
    fragile                                            attention is fused only where nothing was put into it
    names-only                                         layers without details
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

# By its path: what the package imports beside it would make every start a second longer.
TABLE = importlib.util.spec_from_file_location(
    "options", Path(__file__).parents[3] / "targets" / "trtexec" / "options.py"
)
assert TABLE is not None
assert TABLE.loader is not None
options = importlib.util.module_from_spec(TABLE)
sys.modules["options"] = options
TABLE.loader.exec_module(options)

RELEASE = tuple(map(int, os.environ.get("FAKE_RELEASE", "11.4.1").split(".")))
FAULTS = os.environ.get("FAKE_FAULTS", "").split()
PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")
BETWEEN = ("Mul", "Div", "Add", "Where", "Cast", "Softmax")


def say(severity: str, text: str) -> None:
    print(f"[11/24/2026-12:00:00] [{severity}] {text}", flush=True)


def banner(word: str) -> None:
    number = "".join(f"{part:02}" for part in RELEASE)
    print(f"&&&& {word} TensorRT.trtexec [TensorRT v{number}] [b9] # {' '.join(sys.argv)}", flush=True)


class Failed(Exception):
    """Ends with a FAILED line and status 1."""


def main() -> int:
    if "no-start" in FAULTS:
        print("trtexec: error while loading shared libraries: libnvinfer.so.10", file=sys.stderr)
        return 127
    banner("RUNNING")
    try:
        given = options.read(sys.argv[1:], RELEASE[0])
        if "help" in given:
            print("=== Model Options ===")
            return 0
        run(given)
    except (Failed, options.BuildError) as error:
        say("E", str(error))
        banner("FAILED")
        return 1
    if "liar" not in FAULTS:
        banner("PASSED")
    return 0


def run(given: dict[str, list[str]]) -> None:
    say("I", f"TensorRT version: {'.'.join(map(str, RELEASE))}")
    for library in given.get("dynamicPlugins", []):
        if "/" not in library or not Path(library).is_file():
            raise Failed(f"Could not load library {library}: cannot open shared object file")
    if "hang" in FAULTS or ("hang-run" in FAULTS and "loadEngine" in given):
        time.sleep(3600)
    if "onnx" in given:
        engine = build(given)
    else:
        engine = load(Path(given["loadEngine"][0]))
    if "skipInference" in given:
        say("I", "Skipped inference phase since --skipInference is added.")
        return
    if "fail-run" in FAULTS:
        raise Failed("Error Code 1: Cuda Runtime (out of memory)")
    check_shapes(engine, shapes(given, "shapes"))
    report(given, engine)


def build(given: dict[str, list[str]]) -> dict[str, Any]:
    import onnx
    import onnx.inliner
    import onnx.shape_inference

    if RELEASE[0] == 10 and "stronglyTyped" not in given:
        say("W", "the types are TensorRT's choice")
    try:
        model = onnx.load(given["onnx"][0])
    except Exception as cause:
        raise Failed(f"Failed to parse onnx file: {cause}") from cause
    bodies = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if (
            node.domain == "tokenrt"
            and (node.domain, node.op_type) not in bodies
            and "dynamicPlugins" not in given
        ):
            say("E", f"[TRT] ModelImporter.cpp: In node with name: {node.name} and operator: {node.op_type}")
            raise Failed(
                f"Plugin not found, are the plugin name, version, and namespace correct? {node.op_type}"
            )
    if "fail-build" in FAULTS:
        say("E", "Error[10]: Could not find any implementation for node {ForeignNode[a...b]}.")
        raise Failed("Engine could not be created from network")
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initial]
    profile = {name: [shapes(given, kind).get(name) for kind in ("minShapes", "optShapes", "maxShapes")]
               for name in (value.name for value in inputs)}  # fmt: skip
    for value in inputs:
        dynamic = any(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
        if dynamic and None in profile[value.name]:
            raise Failed(f"Dynamic dimensions required for input: {value.name}, but no shapes were provided")
    inline = onnx.inliner.inline_local_functions(model)
    inferred = onnx.shape_inference.infer_shapes(inline)
    engine = {
        "fake": list(RELEASE),
        "inputs": [value.name for value in inputs],
        "outputs": [value.name for value in model.graph.output],
        "profile": profile,
        "layers": layers(inferred, {name: sizes[1] for name, sizes in profile.items() if sizes[1]}),
    }
    cache = given.get("timingCacheFile")
    if cache:
        say(
            "I",
            f"Loaded {Path(cache[0]).stat().st_size if Path(cache[0]).exists() else 0} bytes of timing cache",
        )
        Path(cache[0]).write_bytes(b"timing cache")
    if "saveEngine" in given:
        text = json.dumps(engine).encode() + b" " * (int(os.environ.get("FAKE_ENGINE_MIB", "0")) << 20)
        try:
            put("engine", Path(given["saveEngine"][0]), text.decode())
        except OSError as cause:
            raise Failed(f"Saving engine to file failed. {cause.strerror}") from cause
    return engine


def load(path: Path) -> dict[str, Any]:
    try:
        engine: dict[str, Any] = json.loads(path.read_text())
        if engine["fake"] == list(RELEASE) and "unread" not in FAULTS:
            return engine
    except (OSError, ValueError, KeyError):
        pass
    say("E", "Error[6]: IRuntime::deserializeCudaEngine: incompatible plan")
    if "unread" in FAULTS:
        say("E", "Engine deserialization failed")
        return engine
    raise Failed("Engine deserialization failed")


def shapes(given: dict[str, list[str]], option: str) -> dict[str, list[int]]:
    parts = (part.rpartition(":") for part in given.get(option, [""])[0].split(",") if part)
    return {name: [int(size) for size in dims.split("x")] for name, _, dims in parts}


def check_shapes(engine: dict[str, Any], asked: dict[str, list[int]]) -> None:
    for name in asked:
        if name not in engine["inputs"]:
            raise Failed(f"Cannot find input tensor with name {name} in the engine bindings")
    for name, sizes in engine["profile"].items():
        if sizes[0] is None:
            continue
        if name not in asked:
            say("W", f"Dynamic dimensions required for input: {name}, but no shapes were provided")
        elif not all(
            low <= size <= high for low, size, high in zip(sizes[0], asked[name], sizes[2], strict=True)
        ):
            raise Failed(f"input {name}: supplied dimensions are out of the range of the profile")


def layers(model: Any, at: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Products alone, attention as one, all else in runs, as the real builder does it roughly."""
    nodes = [node for node in model.graph.node if node.op_type not in ("Constant", "Identity")]
    batch = next(iter(at.values()), [1])[0]
    sizes = {}
    for value in [*model.graph.value_info, *model.graph.output]:
        size = 1
        for dim in value.type.tensor_type.shape.dim:
            size *= dim.dim_value or batch
        sizes[value.name] = size
    made_by = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    heads: dict[int, list[Any]] = {}
    taken: set[int] = set()
    for node in nodes:
        if node.op_type == "Softmax" and (core := attention(node, made_by, readers)):
            heads[id(core[0])] = core
            taken |= {id(part) for part in core}
    found: list[dict[str, Any]] = []
    waiting: list[Any] = []

    def put_down(core: list[Any], stem: str, kind: str) -> None:
        cost = sum(sizes.get(name, 64) for part in core for name in part.output) * 1e-6 + 0.001
        names = [part.name or f"node_of_{part.output[0]}" for part in core]
        found.append({"name": f"{stem}_myl0_{len(found)}", "kind": kind, "nodes": names, "ms": cost})

    for node in nodes:
        alone = node.op_type in PRODUCTS or id(node) in taken
        if alone and waiting:
            put_down(waiting, "__myl_" + "".join(part.op_type[:4] for part in waiting[:8]), "kgen")
            waiting = []
        if id(node) in heads:
            put_down(heads[id(node)], "_gemm_mha_v2", "kgen")
        elif node.op_type == "Attention":
            put_down([node], "_gemm_mha_v2", "kgen")
        elif alone and id(node) not in taken:
            put_down([node], node.name, "gemm")
        elif not alone:
            waiting.append(node)
    if waiting:
        put_down(waiting, "__myl_Last", "kgen")
    first = {
        "name": f"Reformatting CopyNode for Input Tensor 0 to {nodes[0].name}",
        "kind": "Reformat",
        "nodes": [],
        "ms": 0.002,
    }
    return [first, *found]


def attention(softmax: Any, made_by: dict[str, Any], readers: dict[str, list[Any]]) -> list[Any]:
    chain, name = [softmax], softmax.input[0]
    while (node := made_by.get(name)) is not None and node.op_type in (*BETWEEN, "MatMul"):
        if "fragile" in FAULTS and node.name.startswith("tokenrt_"):
            return []
        chain.append(node)
        if node.op_type == "MatMul":
            last = [user for user in readers.get(softmax.output[0], []) if user.op_type == "MatMul"]
            return [*reversed(chain), *last] if last else []
        name = node.input[0]
    return []


def report(given: dict[str, list[str]], engine: dict[str, Any]) -> None:
    noise = random.Random(len(engine["layers"]))
    total = sum(layer["ms"] for layer in engine["layers"])
    runs = int(given.get("iterations", ["10"])[0])
    if "exportLayerInfo" in given:
        put("layers", Path(given["exportLayerInfo"][0]), inspector(engine))
    if "exportTimes" in given:
        rows, clock = [], 500.0
        for _ in range(runs):
            compute = total * noise.uniform(0.99, 1.01)
            ends = (
                clock,
                clock + 0.01,
                clock,
                clock,
                clock,
                clock + compute,
                clock + compute,
                clock + compute,
            )
            names = (
                "startEnqMs",
                "endEnqMs",
                "startH2dMs",
                "endH2dMs",
                "startComputeMs",
                "endComputeMs",
                "startD2hMs",
                "endD2hMs",
            )
            pairs = [
                *zip(names, ends, strict=True),
                ("h2dMs", 0),
                ("computeMs", compute),
                ("d2hMs", 0),
                ("latencyMs", compute),
            ]
            rows.append("{ " + ", ".join(f'"{name}" : {value:g}' for name, value in pairs) + " }")
            clock += compute
        put("times", Path(given["exportTimes"][0]), "[\n  " + "\n, ".join(rows) + "\n]\n")
    if "exportProfile" in given:
        lines = [f'  {{ "count" : {runs} }}']
        for layer in engine["layers"]:
            share = "-nan" if "nan" in FAULTS else f"{layer['ms'] / total * 100:g}"
            lines.append(
                f', {{ "name" : "{spelt(layer["name"])}", "timeMs" : {layer["ms"] * runs:g}, "averageMs" : {layer["ms"]:g}'
                f', "medianMs" : {layer["ms"]:g}, "percentage" : {share} }}'
            )
        put("profile", Path(given["exportProfile"][0]), "[\n" + "\n".join(lines) + "\n]\n")


def inspector(engine: dict[str, Any]) -> str:
    """As IEngineInspector says it: names unescaped, ONNX nodes apart by a control character."""
    rows = []
    kind = (
        '"Format/Datatype": "Row major linear FP32"'
        if RELEASE[0] == 10
        else '"Format": "Row major linear", "Datatype": "Float"'
    )
    tensor = f'[{{"Name": "t", "Location": "Device", "Dimensions": [1,6,8], {kind}}}]'
    for layer in engine["layers"]:
        nodes = "\x1f".join(f"[ONNX Layer: {spelt(name)}]" for name in layer["nodes"])
        full = (
            f'{{"Name": "{spelt(layer["name"])}", "LayerType": "{layer["kind"]}", "Inputs": {tensor}, "Outputs": {tensor}, '
            f'"TacticName": "0x01", "StreamId": 0, "Metadata": "{nodes}"}}'
        )
        rows.append(f'"{spelt(layer["name"])}"' if "names-only" in FAULTS else full)
    tensors = [*engine["inputs"], *engine["outputs"]]
    ports = (
        '"Bindings": [' + ",".join(f'"{name}"' for name in tensors) + "]"
        if RELEASE[0] == 10
        else '"I/O Tensors": [' + ",".join(
            f'{{"Name": "{name}", "IOMode": "{"Input" if name in engine["inputs"] else "Output"}", "DataType": "Float", '
            '"Dimensions": [1,6,8], "Location": "Device", "IsShapeInferenceIO": false, "ProfileInfo": []}'
            for name in tensors
        ) + '], "Engine Metadata": {}'
    )  # fmt: skip
    return '{"Layers": [' + "\n,".join(rows) + f"],\n{ports}\n}}\n"


def spelt(name: str) -> str:
    return f'{name}"' if "quotes" in FAULTS else name


def put(kind: str, path: Path, text: str) -> None:
    faults = {fault.partition(":")[0] for fault in FAULTS if fault.endswith(f":{kind}")}
    if "missing" in faults:
        return
    if "empty" in faults:
        text = ""
    if "truncate" in faults:
        text = text[: len(text) * 2 // 3]
    if "garbage" in faults:
        text = '{"what": 1}'
    try:
        path.write_text(text)
    except OSError:
        if kind == "engine":
            raise


if __name__ == "__main__":
    sys.exit(main())
