"""Build an engine for a target: make the model legal for it, compile, write engine and manifest."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import BuildError, TargetError
from tokenrt.files import atomic
from tokenrt.passes.forms.legalize import legalize
from tokenrt.passes.graph.functions import Change, label
from tokenrt.passes.graph.model import ModelLike, on_disk
from tokenrt.passes.graph.model import load as load_model
from tokenrt.targets.engines import cache as engine_cache
from tokenrt.targets.engines.batch import Batch, batch_of, shapes_of
from tokenrt.targets.profiles.profile import Target, load, targets
from tokenrt.targets.report import BuildReport
from tokenrt.targets.rtx.builder import (
    CRASHED,
    NO_KERNEL,
    TENSORRT,
    TENSORRT_RTX,
    Builder,
    Engine,
    Named,
    Progress,
    compile_engine,
    version,
)
from tokenrt.targets.trtexec import command
from tokenrt.targets.trtexec import tool as trtexec_tool
from tokenrt.version import __version__

BUILDERS = {"tensorrt-rtx": TENSORRT_RTX, "tensorrt": TENSORRT}


@dataclass(frozen=True)
class _Job:
    """One build, as asked for."""

    target: Target
    builder: Builder
    batch: Batch | None
    workspace: int | None
    plugins: tuple[Path, ...]
    tool: Path | None
    timing_cache: Path
    verbose: bool
    tell: Progress


def build(
    model: ModelLike,
    *,
    target: str | Target,
    output: str | os.PathLike[str],
    batch: str | int | Batch | None = None,
    workspace: int | None = None,
    plugins: Iterable[str | os.PathLike[str]] = (),
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    verbose: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine at `output`, with its manifest beside it as `<output>.json`.

    TensorRT-RTX builds for GPUs that are not here; TensorRT builds for the GPU of the machine it runs on, through its
    Python bindings, or trtexec where only that is installed.
    An engine that is at `output`, or in the folder `cache`, is taken when model, target, options and versions
    are all the same; `force` builds anyway.

    batch: "MIN:OPT:MAX", a number, or three, for a model with a dynamic batch; 1:8:8 when left out.
    workspace: MiB the builder may plan for. plugins: libraries with plugins, for TensorRT.
    verbose: the builder's log on standard error. progress: called with one line at every stage.

    Raises: BuildError naming the node the builder refuses, or that TensorRT is not here;
        ShapeError for a dynamic dimension that is not the batch; TargetError for a target nothing is built
        for; DependencyError when the builder is missing; DeviceError for a trtexec of another major.
    """
    chosen = load(target) if isinstance(target, str) else target
    builder = BUILDERS.get(chosen.builder)
    if builder is None:
        raise TargetError(
            f"nothing is built for {chosen.name}: {chosen.summary}. Targets with engines: {_with_engines()}"
        )
    path = Path(output)
    if path.suffix == ".onnx":
        raise BuildError(f"{path} is named like a model; name the engine with another ending, as in .engine")
    libraries = _libraries(chosen, plugins)
    for library in libraries:
        if not library.is_file():
            raise BuildError(f"--plugins {library}: no such file")
    tool = _tool(chosen) if builder is TENSORRT and find_spec("tensorrt") is None else None
    tell = progress or (lambda stage: None)
    manifest_path = engine_cache.manifest(path)
    folder = None if cache is None else _folder(Path(cache))
    with atomic(path) as file, atomic(manifest_path) as manifest, on_disk(model) as source:
        tell("reading the model")
        legal = load_model(source)
        span = batch_of(legal, batch)
        timing_cache = (folder or path.parent) / f"{chosen.name}.timing"
        job = _Job(chosen, builder, span, workspace, libraries, tool, timing_cache, verbose, tell)
        parts = _parts(job, source, legal)
        key = engine_cache.key(parts)
        places = [path, *([] if folder is None else [folder / f"{key}.engine"])]
        found = None if force else engine_cache.find(key, places)
        if found is not None:
            tell("taking the engine that is there")
            report = BuildReport.read(engine_cache.manifest(found))
            report = replace(report, engine=path, manifest=manifest_path, seconds=0.0, reused=True)
            shutil.copyfile(found, file)
        else:
            started = time.perf_counter()
            tell(f"making it legal for {chosen.name}")
            engine, changes = _compile(source, legal, file, job)
            report = BuildReport(
                engine=path,
                manifest=manifest_path,
                target=chosen.name,
                compute_capability=", ".join(chosen.compute_capabilities),
                model=str(legal.graph.name) if isinstance(model, ir.Model) else os.fspath(model),
                model_sha256=parts["model"],
                batch=job.batch,
                inputs=engine.inputs,
                outputs=engine.outputs,
                changes=changes,
                warnings=engine.warnings,
                versions=parts["versions"],
                options=engine.options,
                seconds=time.perf_counter() - started,
                engine_bytes=file.stat().st_size,
                engine_sha256=engine_cache.sha256(file),
                key=key,
            )
        tell("writing")
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        manifest.write_text(text, encoding="utf-8")
        if folder is not None and found is None:
            with atomic(places[1]) as kept, atomic(engine_cache.manifest(places[1])) as told:
                shutil.copyfile(file, kept)
                told.write_text(text, encoding="utf-8")
    return report


def commands(
    model: ModelLike,
    *,
    target: str | Target,
    output: str | os.PathLike[str],
    batch: str | int | Batch | None = None,
    workspace: int | None = None,
    plugins: Iterable[str | os.PathLike[str]] = (),
    release: str | None = None,
    folder: Path | None = None,
) -> command.Commands:
    """The commands that lower `model`, build an engine at `output` and measure it, where TensorRT is.

    release, folder: how the target was loaded, where it was loaded with another release or from a folder.

    Raises: TargetError for a target that is not built by TensorRT; ShapeError, BuildError as `build`.
    """
    chosen = load(target, tensorrt=release, folder=folder) if isinstance(target, str) else target
    if chosen.builder != "tensorrt":
        raise TargetError(
            f"trtexec does not build for {chosen.name}: {chosen.summary}; build without --print"
        )
    libraries = _libraries(chosen, plugins)
    engine = Path(output)
    with on_disk(model) as source:
        legal = load_model(source)
        span = batch_of(legal, batch)
        legalize(legal, chosen.accepts(), bare=bool(libraries))
        name = Path("model.onnx") if isinstance(model, ir.Model) else Path(model)
    lowered = engine.with_name(f"{name.stem}.{chosen.name}.onnx")
    shapes = shapes_of(legal, span)
    cache = engine.with_name(f"{chosen.name}.timing")
    return command.Commands(
        chosen.name,
        str(chosen.fact("tensorrt")),
        (
            command.lower_command(
                chosen, name, lowered, plugin=bool(libraries), release=release, folder=folder
            ),
            command.build_command(
                chosen,
                lowered,
                engine,
                shapes=shapes,
                plugins=libraries,
                workspace=workspace,
                timing_cache=cache,
            ),
            command.measure_command(chosen, engine, shapes=shapes, plugins=libraries),
        ),
    )


def _libraries(target: Target, plugins: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    libraries = tuple(map(Path, plugins))
    if libraries and not target.fact("plugins", False):
        raise TargetError(f"{target.name} loads no plugin library ({libraries[0]}): leave --plugins out")
    return libraries


def _tool(target: Target) -> Path:
    found = trtexec_tool.find()
    if found is None:
        raise BuildError(
            "nothing was built: TensorRT is not installed here (pip install 'tokenrt[tensorrt]'), and there is no command. "
            f"`tokenrt build ... --target {target.name} --print` shows the commands to run on the device"
        )
    return found


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise BuildError(f"the cache folder {path} cannot be made: {cause}") from cause
    return path


def _parts(job: _Job, source: Path, model: ir.Model) -> dict[str, Any]:
    """Everything an engine depends on."""
    facts = {name: fact.value for name, fact in job.target.facts.items()}
    return {
        "model": engine_cache.sha256(source, *_beside(source, model)),
        "code": engine_cache.code(),
        "target": job.target.name,
        "facts": facts,
        "batch": job.batch,
        "workspace": job.workspace,
        "plugins": [engine_cache.sha256(library) for library in job.plugins],
        "versions": _versions(job),
    }


def _compile(source: Path, legal: ir.Model, output: Path, job: _Job) -> tuple[Engine, tuple[Change, ...]]:
    accepts = job.target.accepts()
    changes = legalize(legal, accepts, bare=bool(job.plugins))

    def run(model: ModelLike) -> Engine:
        if job.tool is not None:
            return trtexec_tool.compile_engine(
                legal,
                output,
                target=job.target,
                batch=job.batch,
                workspace=job.workspace,
                plugins=job.plugins,
                timing_cache=job.timing_cache,
                verbose=job.verbose,
                progress=job.tell,
            )
        with on_disk(model) as path:
            return compile_engine(
                path,
                output,
                builder=job.builder,
                capabilities=job.target.compute_capabilities,
                batch=job.batch,
                nodes=_named(legal),
                workspace=job.workspace,
                plugins=job.plugins,
                verbose=job.verbose,
                progress=job.tell,
            )

    try:
        return run(legal if changes else source), changes
    except BuildError as error:
        # What the profile lets through and the builder still has no kernel for, or may have crashed on, is split after all.
        stuck = any(sign in str(error) for sign in (NO_KERNEL, CRASHED))
        more = legalize(legal, accepts, all_attention=True) if stuck else ()
        if not more:
            raise
        return run(legal), changes + more


def _with_engines() -> str:
    return ", ".join(target.name for target in targets() if target.builder != "none")


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


def _beside(path: Path, model: ir.Model) -> list[Path]:
    """The weight files a model's file names."""
    weights = (value.const_value for value in model.graph.initializers.values())
    named = (Path(tensor.path) for tensor in weights if isinstance(tensor, ir.ExternalTensor))
    return [file for file in dict.fromkeys(named) if file != path]


def _versions(job: _Job) -> dict[str, str]:
    import onnx

    builder = (
        {job.builder.key: version(job.builder)}
        if job.tool is None
        else {"trtexec": trtexec_tool.version(job.tool)}
    )
    return {"tokenrt": __version__, "onnx": onnx.__version__, **builder}
