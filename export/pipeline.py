"""The verb: find the source, load, export, compare, and only then write."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.errors import DependencyError, ExportError
from tokenrt.export.options import Options
from tokenrt.export.report import ExportReport, TensorInfo
from tokenrt.export.sources import find

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from tokenrt.export.flat import Flat
    from tokenrt.export.sources.contract import Loaded

BATCHES = (1, 3)
"""Batch sizes a dynamic batch is compared at, neither of them the one the exporter saw."""

TRACED = 2
"""Batch the exporter sees where it must not take the size for a constant; torch specialises 0 and 1."""


def export(
    source: str,
    output: str | os.PathLike[str],
    *,
    opset: int = 18,
    dtype: str = "fp32",
    batch: int | None = None,
    exporter: str = "dynamo",
    random_weights: bool = False,
    seed: int = 0,
    image_size: int | None = None,
    sequence_length: int | None = None,
    part: str | None = None,
    image_grid: str | None = None,
    keep_layer: int | None = None,
) -> ExportReport:
    """Export a model to ONNX and compare the file with torch on seeded inputs.

    `source` is `hf:NAME_OR_DIR`, `timm:NAME`, `torchvision:NAME` or `FILE.py:FUNCTION`. `batch` None keeps
    the batch dynamic where the model has one. `random_weights` makes the architecture alone, from `seed`, and
    needs no network. `part` "vision" exports tower and projector of a Hugging Face vision-language model as
    `pixel_values` to `image_features`; `image_grid` (`2x2`, `4x16x16`) then says frames, rows and columns: of
    patches for a model that takes patches (Qwen), of crops where crops are stitched (LLaVA-NeXT, LLaVA-OneVision).
    `keep_layer` keeps the attention of a layer of the tower that the features do not read, which exporters drop: the
    stream behind it becomes the output `attended_L`, which `reduce` takes away once it has chosen at another output.

    Raises: ExportError when the source, the options, the exporter or the comparison fails, DependencyError
        when a package is missing. Nothing is written then.
    """
    options = Options(
        opset=opset,
        dtype=dtype,
        batch=batch,
        exporter=exporter,
        random_weights=random_weights,
        seed=seed,
        image_size=image_size,
        sequence_length=sequence_length,
        part=part,
        image_grid=image_grid,
        keep_layer=keep_layer,
    )
    found, parts = find(source)
    if part is not None and part not in found.parts:
        raise ExportError(
            f"{source} has no {part} part to choose; --part is for Hugging Face models (hf:NAME_OR_DIR)"
        )
    target = _target(output)
    found.require()
    _require_exporter()

    import torch

    from tokenrt.export.quiet import quiet

    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(options.seed)
        loaded = found.load(parts, options)
    loaded.module.eval().requires_grad_(False)
    if loaded.batched == frozenset() and options.batch is None:
        options = replace(options, batch=1)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        return _export(source, loaded, options, Path(folder) / "model.onnx", target, started)


def _export(
    source: str, loaded: Loaded, options: Options, draft: Path, target: Path, started: float
) -> ExportReport:
    from tokenrt.export.exporter import write
    from tokenrt.export.flat import Flat, run
    from tokenrt.export.parity import compare
    from tokenrt.export.quiet import quiet
    from tokenrt.passes.graph.model import load, save

    flat = Flat(loaded, tuple(loaded.draw(1, 0)))
    batches = BATCHES if options.batch is None else (options.batch,)
    with quiet():
        cases = []
        for number in batches:
            inputs = loaded.draw(number, options.seed)
            cases.append((number, _arrays(inputs, options.dtype), _arrays(run(flat, inputs))))
        axes = _axes(flat, cases) if options.batch is None else {name: {} for name in flat.names}
        example = loaded.draw(options.batch or TRACED, options.seed + 1)
        if options.dtype == "fp16":
            flat.half()
            example = {name: _half(value) for name, value in example.items()}
    write(flat, example, tuple(cases[0][2]), axes, options, draft)
    parity = compare(draft, cases, options.dtype)
    model = load(draft)
    model.metadata_props["tokenrt.export"] = f"{source} {options.spec()}"
    save(model, target)
    return ExportReport(
        source=source,
        model=loaded.model,
        weights=loaded.weights,
        output=target,
        opset=options.opset,
        exporter=options.exporter,
        dtype=options.dtype,
        batch=options.batch,
        inputs=tuple(_info(value) for value in model.graph.inputs),
        outputs=tuple(_info(value) for value in model.graph.outputs),
        nodes=len(model.graph),
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        parity=parity,
        seconds=time.perf_counter() - started,
        notes=loaded.notes,
    )


def _target(output: str | os.PathLike[str]) -> Path:
    """Refuse what cannot be written before minutes are spent."""
    path = Path(output)
    if path.suffix != ".onnx":
        raise ExportError(f"cannot write {path}: a model's file name ends in .onnx")
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a directory; name a file inside it")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    return path


def _require_exporter() -> None:
    for package in ("onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as cause:
            raise DependencyError(package, "export", "exporting to ONNX") from cause


def _axes(flat: Flat, cases: list[tuple[int, Any, Any]]) -> dict[str, dict[int, str]]:
    """Axes named batch: axis 0 of the batched inputs, and every output axis that moved with the batch."""
    batched = flat.loaded.batched
    axes = {name: {0: "batch"} if batched is None or name in batched else {} for name in flat.names}
    (_, _, few), (_, _, more) = cases
    for name, one in few.items():
        sizes = zip(one.shape, more[name].shape, strict=True)
        axes[name] = {axis: "batch" for axis, (size, other) in enumerate(sizes) if size != other}
    return axes


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _arrays(tensors: dict[str, Tensor], dtype: str = "fp32") -> dict[str, Any]:
    return {name: (_half(value) if dtype == "fp16" else value).numpy() for name, value in tensors.items()}


def _info(value: ir.Value) -> TensorInfo:
    shape = (
        ()
        if value.shape is None
        else tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    )
    kind = "unknown" if value.dtype is None else str(value.dtype.numpy())
    return TensorInfo(str(value.name), kind, shape)
