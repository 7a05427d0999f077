"""TensorRT-RTX and TensorRT in a process of their own: build an engine, and say which node stands in the way.

TensorRT-RTX builds for a GPU that need not be here. The route through TensorRT's own bindings is unverified: its
wheel cannot be installed where this is tested. It differs in the module, the plugins and the missing capability.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenrt.errors import BuildError, DependencyError, TargetError
from tokenrt.targets.engines.batch import Batch

Progress = Callable[[str], None]
"""Called with one line of text when a stage of the work begins."""

NO_KERNEL = "is_decomposable"
"""In the builder's message when it has no kernel for a fused Attention node."""

CRASHED = "crashed ("
"""In ours when its process ended without an answer."""


@dataclass(frozen=True)
class Builder:
    """Which of NVIDIA's builders: its name, its Python module, and the package and extra that bring it."""

    name: str
    module: str
    key: str
    package: str
    extra: str


TENSORRT_RTX = Builder(
    "TensorRT-RTX", "tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt-rtx-cu13-bindings", "rtx"
)
TENSORRT = Builder("TensorRT", "tensorrt", "tensorrt", "tensorrt", "tensorrt")


@dataclass(frozen=True)
class Port:
    """An input or output of an engine; `shapes` are its smallest, usual and largest, or its only one."""

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shapes": [list(shape) for shape in self.shapes]}


@dataclass(frozen=True)
class Engine:
    """What the builder says of an engine it wrote."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    warnings: tuple[str, ...]
    options: Mapping[str, Any]
    layers: tuple[tuple[str, ...], ...] | None = None
    """The names of the nodes in each of its layers behind fusion, where they were asked for."""


@dataclass(frozen=True)
class Named:
    """A node of the model, so that a message of the builder can be traced to it."""

    name: str
    operator: str
    domain: str

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"{self.operator} node{name} (domain {self.domain or 'ai.onnx'})"


def version(builder: Builder = TENSORRT_RTX) -> str:
    """The builder's version. Raises: DependencyError when it is missing."""
    return str(_bindings(builder).__version__)


def compile_engine(
    model: Path,
    output: Path,
    *,
    capabilities: Iterable[str],
    batch: Batch | None,
    nodes: Mapping[str, Named],
    builder: Builder = TENSORRT_RTX,
    workspace: int | None = None,
    plugins: Iterable[Path] = (),
    verbose: bool = False,
    layers: bool = False,
    progress: Progress = lambda stage: None,
) -> Engine:
    """Build `model` for compute capabilities, for example ["8.9"], and write the engine to `output`.

    batch: the range of the leading dimension of every input where that is dynamic. workspace: MiB.
    nodes: the model's nodes by the names the builder gives them, and those of the graph as "#INDEX" too. layers: ask for them.

    Raises: BuildError naming the node; DependencyError; TargetError for a capability RTX does not know.
    """
    job = {
        "model": os.fspath(model),
        "output": os.fspath(output),
        "module": builder.module,
        # TensorRT builds for the GPU it finds.
        "capabilities": list(map(_capability, capabilities)) if builder is TENSORRT_RTX else [],
        "plugins": [os.fspath(library) for library in plugins],
        "batch": batch,
        "workspace": workspace,
        "verbose": verbose,
        "layers": layers,
    }
    stage, answer, status, noise = _run(job, verbose, progress)
    told = f"{builder.name} {version(builder)}"
    if "engine" in answer:
        found = answer["engine"]
        inputs, outputs = (tuple(map(_port, found[side])) for side in ("inputs", "outputs"))
        made = None if found["layers"] is None else tuple(map(tuple, found["layers"]))
        return Engine(inputs, outputs, tuple(found["warnings"]), found["options"], made)
    if "parse" in answer:
        raise BuildError(f"{told} does not take {_parse_refusal(answer['parse'], nodes)}")
    if "build" in answer:
        raise BuildError(f"{told} cannot build the model: {_build_refusal(answer['build'], nodes)}")
    if "write" in answer:
        raise BuildError(f"the engine cannot be written: {answer['write']}; nothing was left there")
    end = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    said = f"; its last words: {_one_line(noise)[-400:]}" if noise.strip() else ""
    raise BuildError(
        f"{told} {CRASHED}{end}) while {stage}{said}. This is a fault of the builder; "
        "`tokenrt lower --inline` gives a plainer model to try, and --verbose (verbose=True) shows the builder's log"
    )


def _run(job: Mapping[str, Any], verbose: bool, progress: Progress) -> tuple[str, dict[str, Any], int, str]:
    """Stage reached, last answer, exit status, and what was printed to standard error."""
    stage, answer = "starting", dict[str, Any]()
    paths = os.pathsep.join(item for item in sys.path if item)
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        worker = subprocess.Popen(
            [sys.executable, "-P", os.fspath(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else noise,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
        )
        with worker:
            try:
                for message in _converse(worker.stdin, worker.stdout, job):
                    if "stage" in message:
                        stage = message["stage"]
                        progress(stage)
                    else:
                        answer = message
            except BaseException:
                worker.kill()
                raise
        noise.seek(0)
        return stage, answer, worker.returncode, noise.read()


def _converse(
    stdin: IO[str] | None, stdout: IO[str] | None, job: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    if stdin is None or stdout is None:
        return
    stdin.write(json.dumps(job))
    stdin.close()
    for line in stdout:
        if line.startswith("{"):
            yield json.loads(line)


def _bindings(builder: Builder = TENSORRT_RTX) -> Any:
    try:
        return importlib.import_module(builder.module)
    except ImportError as cause:
        raise DependencyError(builder.package, builder.extra, "building an engine") from cause


def _capability(capability: str) -> str:
    trt = _bindings()
    name = "SM" + capability.replace(".", "")
    if name not in trt.ComputeCapability.__members__:
        there = sorted(item for item in trt.ComputeCapability.__members__ if item.startswith("SM"))
        raise TargetError(f"TensorRT-RTX {version()} builds for {', '.join(there)}, not for {capability}")
    return name


def _port(found: Mapping[str, Any]) -> Port:
    return Port(found["name"], found["dtype"], tuple(tuple(shape) for shape in found["shapes"]))


def _parse_refusal(errors: list[dict[str, Any]], nodes: Mapping[str, Named]) -> str:
    if not errors:
        return "the model and gives no reason"
    first = errors[0]
    name, operator = first["node"], first["operator"]
    quoted = max((key for key in nodes if key in first["reason"].split()), key=len, default="")
    node = nodes.get(name or quoted or f"#{first['index']}")
    if node is None or node.operator != operator:
        alike = {item for item in nodes.values() if item.operator == operator}
        node = alike.pop() if len(alike) == 1 and not name else Named(name, operator, "")
    inside = f", in function {' > '.join(first['functions'])}" if first["functions"] else ""
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    where = node if operator else "the model"
    return f"{where}{inside}: {_one_line(first['reason'])}{more}"


def _build_refusal(messages: list[str], nodes: Mapping[str, Named]) -> str:
    text = " ".join(map(_one_line, messages)) or "it gives no reason"
    named = [key for key in nodes if len(key) > 2 and key[0] != "#" and key in text]
    where = f"{nodes[max(named, key=len)]}: " if named else ""
    return f"{where}{text[:1500]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
