"""Build an engine for a target: make the model legal for it, compile, write engine and manifest."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import BuildError, ShapeError, TargetError
from tokenrt.files import atomic
from tokenrt.passes.legalize import Change, label, legalize
from tokenrt.passes.lower import on_disk
from tokenrt.passes.model import ModelLike
from tokenrt.passes.model import load as load_model
from tokenrt.targets.profile import Target, load, targets
from tokenrt.targets.tensorrt_rtx import (
    NO_KERNEL,
    Batch,
    Engine,
    Named,
    Port,
    Progress,
    compile_engine,
    version,
)

DEFAULT_BATCH: Batch = (1, 8, 8)
"""Range of a dynamic batch when none is asked for."""


@dataclass(frozen=True)
class BuildReport:
    """An engine that was built, and everything that went into it."""

    engine: Path
    manifest: Path
    target: str
    compute_capability: str
    model: str
    model_sha256: str
    batch: Batch | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    seconds: float
    engine_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "engine": str(self.engine),
            "manifest": str(self.manifest),
            "target": self.target,
            "compute_capability": self.compute_capability,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "batch": None if self.batch is None else list(self.batch),
            "inputs": [port.as_dict() for port in self.inputs],
            "outputs": [port.as_dict() for port in self.outputs],
            "changes": [change.as_dict() for change in self.changes],
            "warnings": list(self.warnings),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "seconds": round(self.seconds, 3),
            "engine_bytes": self.engine_bytes,
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        from tokenrt.passes.legalize import rows

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("engine", f"{self.engine} ({self.engine_bytes / 2**20:.1f} MiB)")
        table.add_row("target", f"{self.target}, compute capability {self.compute_capability}")
        table.add_row("batch", "as in the model" if self.batch is None else ":".join(map(str, self.batch)))
        table.add_row("time", f"{self.seconds:.1f} s")
        table.add_row("manifest", str(self.manifest))
        return Group(table, rows(self.changes)) if self.changes else table


def build(
    model: ModelLike,
    *,
    target: str | Target,
    output: str | os.PathLike[str],
    batch: str | int | Batch | None = None,
    workspace: int | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine at `output`, with its manifest beside it as `<output>.json`; the GPU need not be here.

    batch: "MIN:OPT:MAX", a number, or three, for a model with a dynamic batch; 1:8:8 when left out.
    workspace: MiB the builder may plan for. verbose: the builder's log on standard error.
    progress: called with one line at every stage.

    Raises: BuildError naming the node the builder refuses; ShapeError for a dynamic dimension that is not the
        batch; TargetError for a target nothing is built for; DependencyError when the builder is missing.
    """
    chosen = load(target) if isinstance(target, str) else target
    if chosen.builder != "tensorrt-rtx":
        raise TargetError(
            f"nothing is built for {chosen.name}: {chosen.summary}. Targets with engines: {_with_engines()}"
        )
    path = Path(output)
    if path.suffix == ".onnx":
        raise BuildError(f"{path} is named like a model; name the engine with another ending, as in .engine")
    versions = _versions()
    tell = progress or (lambda stage: None)
    manifest_path = path.with_name(path.name + ".json")
    with atomic(path) as file, atomic(manifest_path) as manifest, on_disk(model) as source:
        tell("reading the model")
        legal = load_model(source)
        span = _batch(legal, batch)
        started = time.perf_counter()
        tell(f"making it legal for {chosen.name}")
        engine, changes = _compile(source, legal, file, chosen, span, workspace, verbose, tell)
        seconds = time.perf_counter() - started
        tell("writing")
        report = BuildReport(
            engine=path,
            manifest=manifest_path,
            target=chosen.name,
            compute_capability=", ".join(chosen.compute_capabilities),
            model=str(legal.graph.name) if isinstance(model, ir.Model) else os.fspath(model),
            model_sha256=_sha256(source, legal),
            batch=span,
            inputs=engine.inputs,
            outputs=engine.outputs,
            changes=changes,
            warnings=engine.warnings,
            versions=versions,
            options=engine.options,
            seconds=seconds,
            engine_bytes=file.stat().st_size,
        )
        manifest.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def _compile(
    source: Path,
    legal: ir.Model,
    output: Path,
    target: Target,
    batch: Batch | None,
    workspace: int | None,
    verbose: bool,
    tell: Progress,
) -> tuple[Engine, tuple[Change, ...]]:
    accepts = target.accepts()
    changes = legalize(legal, accepts)

    def run(model: ModelLike) -> Engine:
        with on_disk(model) as path:
            return compile_engine(
                path,
                output,
                capabilities=target.compute_capabilities,
                batch=batch,
                nodes=_named(legal),
                workspace=workspace,
                verbose=verbose,
                progress=tell,
            )

    try:
        return run(legal if changes else source), changes
    except BuildError as error:
        # What the profile lets through and the builder still has no kernel for is split after all.
        more = legalize(legal, accepts, all_attention=True) if NO_KERNEL in str(error) else ()
        if not more:
            raise
        return run(legal), changes + more


def _with_engines() -> str:
    return ", ".join(target.name for target in targets() if target.builder != "none")


def _batch(model: ir.Model, asked: str | int | Batch | None) -> Batch | None:
    """The batch range of the engine; None for a model whose shapes are all static."""
    wanted = None if asked is None else _read_batch(asked)
    dynamic, fixed = [], {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None:
            raise ShapeError(
                f"input {value.name!r} has no shape; fix it with --shape {value.name}=1x3x224x224"
            )
        for axis, size in enumerate(value.shape):
            if axis and not isinstance(size, int):
                raise ShapeError(
                    f"axis {axis} of input {value.name!r} is dynamic ({size}), and an engine takes a dynamic "
                    f"batch only: fix it when reducing, as in --shape {value.name}={_example(value)}"
                )
        for size in value.shape[:1]:
            if isinstance(size, int):
                fixed[str(value.name)] = size
            else:
                dynamic.append(str(value.name))
    if dynamic:
        return wanted or DEFAULT_BATCH
    if wanted is not None and any(size != only for size in fixed.values() for only in wanted):
        held = ", ".join(f"{name} ({size})" for name, size in fixed.items())
        raise BuildError(
            f"batch {':'.join(map(str, wanted))} was asked for, but the model's batch is fixed: {held}; "
            "leave --batch out, or export with a dynamic batch"
        )
    return None


def _read_batch(asked: str | int | Batch) -> Batch:
    parts = [asked] if isinstance(asked, int) else asked.split(":") if isinstance(asked, str) else list(asked)
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise BuildError(
            f"batch {asked!r}: expected a number or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, as 1:4:8"
        )
    return numbers[0], numbers[1], numbers[2]


def _example(value: ir.Value) -> str:
    sizes = value.shape or ()
    return "x".join(
        "B" if not axis else str(size) if isinstance(size, int) else "128" for axis, size in enumerate(sizes)
    )


def _named(model: ir.Model) -> dict[str, Named]:
    """The model's nodes under the names the builder gives them: their own, or one after the first output.

    Nodes of the graph also stand under "#INDEX", those of functions under "FUNCTION/NAME" as well.
    """
    named = {}
    for function in model.functions.values():
        for node in function.all_nodes():
            key, item = _keyed(node)
            named[key] = named[f"{function.name}/{key}"] = item
    named |= dict(map(_keyed, model.graph.all_nodes()))
    return named | {f"#{index}": _keyed(node)[1] for index, node in enumerate(model.graph)}


def _keyed(node: ir.Node) -> tuple[str, Named]:
    return node.name or f"node_of_{label(node)}", Named(label(node), node.op_type, node.domain)


def _sha256(path: Path, model: ir.Model) -> str:
    """Of the model's file, followed by the weight files it names."""
    weights = (value.const_value for value in model.graph.initializers.values())
    beside = [Path(tensor.path) for tensor in weights if isinstance(tensor, ir.ExternalTensor)]
    digest = hashlib.sha256()
    for file in dict.fromkeys([path, *beside]):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    import onnx

    import tokenrt

    return {"tokenrt": tokenrt.__version__, "onnx": onnx.__version__, "tensorrt_rtx": version()}
