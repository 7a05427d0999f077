"""Exports a zoo model once for each set of options and keeps the file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tokenrt.export.exporter import plain_attention
from tokenrt.export.quiet import quiet

from .entry import INPUTS, Entry


@cache
def _state() -> str:
    """A digest of what decides how an export looks: these files and the versions of the packages."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for package in ("torch", "torchvision", "transformers", "timm", "onnxscript", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:12]


def folder() -> Path:
    """Where the files are kept: TOKENRT_TEST_CACHE, else one folder per user in the temporary directory."""
    root = os.environ.get("TOKENRT_TEST_CACHE") or Path(tempfile.gettempdir()) / f"tokenrt-zoo-{os.getuid()}"
    path = Path(root) / _state()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _export(module: nn.Module, inputs: dict[str, Tensor], entry: Entry, path: Path, **options: Any) -> None:
    axes = INPUTS[entry.inputs][1]
    moving = {
        name: {
            axis: label
            for axis, label in axes.get(name, {}).items()
            if label != "batch" or options["dynamic"]
        }
        for name in inputs
    }
    common: dict[str, Any] = {
        "opset_version": options["opset"],
        "input_names": list(inputs),
        "output_names": list(entry.outputs),
    }
    if options["exporter"] == "torchscript":
        every = {
            **moving,
            **({name: {0: "batch"} for name in entry.outputs} if options["dynamic"] and axes else {}),
        }
        common |= {"dynamo": False, "dynamic_axes": {name: found for name, found in every.items() if found}}
    else:
        labels = {
            label: torch.export.Dim(label, min=1) for found in moving.values() for label in found.values()
        }
        if "past_and_new" in labels:
            labels["past_and_new"] = labels["past"] + 1
        shapes = tuple({axis: labels[label] for axis, label in moving[name].items()} for name in inputs)
        common |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False}
    torch.onnx.export(module, tuple(inputs.values()), str(path), **common)


def _transformers(source: Path, entry: Entry, multi_head: bool = False) -> onnx.ModelProto:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions(entry.fuse)
    options.use_multi_head_attention = multi_head
    fused = optimizer.optimize_model(
        str(source),
        model_type=entry.fuse,
        num_heads=entry.heads,
        hidden_size=entry.width,
        optimization_options=options,
        opt_level=0,
    )
    model: onnx.ModelProto = fused.model
    return model


def _onnxscript(source: Path, entry: Entry) -> onnx.ModelProto:
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.load(source))
    return ir.to_proto(model)


# Each makes other com.microsoft nodes: `transformers` mostly SkipLayerNormalization and BiasGelu (for BERT
# with eager attention through TorchScript Attention, or MultiHeadAttention in the `-mha` form), `onnxscript`
# Attention and MultiHeadAttention for nearly every dynamo export.
FUSIONS: dict[str, Callable[[Path, Entry], onnx.ModelProto]] = {
    "transformers": _transformers,
    "transformers-mha": lambda source, entry: _transformers(source, entry, multi_head=True),
    "onnxscript": _onnxscript,
}


def _fuse(source: Path, target: Path, entry: Entry, fusion: str, half: bool) -> None:
    from onnxruntime.transformers.onnx_model import OnnxModel

    if fusion != "onnxscript" and entry.fuse is None:
        raise LookupError(f"{entry.name} has no model type for onnxruntime's transformer optimizer")
    model = OnnxModel(FUSIONS[fusion](source, entry))
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(target))


def cached(
    entry: Entry,
    build: Callable[[], nn.Module],
    examples: Callable[[int], dict[str, Tensor]],
    *,
    tag: str,
    opset: int = 18,
    exporter: str = "dynamo",
    batch: str | int = "dynamic",
    dtype: str = "fp32",
    fused: bool | str = False,
) -> Path:
    """Path of the file with these options, exported on the first call.

    `fused` is a key of `FUSIONS` (True means transformers) run on the fp32 export; the result is turned to
    fp16 where asked, with fp32 inputs and outputs, as users of these tools do. Unfused fp16 is a
    half-precision torch module with fp16 inputs.

    Raises: whatever the exporter raises; nothing is left in the cache then.
    """
    fusion = "transformers" if fused is True else fused
    end = f"__{fusion}" if fusion else ""
    name = f"{entry.name}__{exporter}__op{opset}__b{batch}__{dtype}__{tag}{end}.onnx"
    path = folder() / name
    if path.exists():
        return path
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with torch.no_grad(), quiet(), plain_attention():
            if fusion:
                plain = cached(entry, build, examples, tag=tag, opset=opset, exporter=exporter, batch=batch)
                _fuse(plain, temporary, entry, fusion, dtype == "fp16")
            else:
                module, inputs = build(), examples(2 if batch == "dynamic" else int(batch))
                if dtype == "fp16":
                    module = module.half()
                    inputs = {
                        key: value.half() if value.is_floating_point() else value
                        for key, value in inputs.items()
                    }
                _export(
                    module,
                    inputs,
                    entry,
                    temporary,
                    opset=opset,
                    exporter=exporter,
                    dynamic=batch == "dynamic",
                )
                if entry.finish is not None:
                    entry.finish(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
