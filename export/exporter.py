"""torch's two ONNX exporters behind one call, quiet, with one-line errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenrt.errors import ExportError
from tokenrt.export.flat import Flat
from tokenrt.export.options import Options
from tokenrt.export.quiet import quiet
from tokenrt.export.sources.contract import first_line

EMBEDDED_LIMIT = 1_500_000_000
"""Bytes of weights up to which the file holds them itself; a protobuf message ends at 2 GiB."""

Axes = Mapping[str, Mapping[int, str]]


def write(
    flat: Flat,
    inputs: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    axes: Axes,
    options: Options,
    path: Path,
) -> None:
    """Export `flat` to `path`; `axes` names the axes of inputs and outputs that may change.

    Raises: ExportError with the first line of what the exporter said and what to try instead.
    """
    common: dict[str, Any] = {
        "opset_version": options.opset,
        "input_names": list(inputs),
        "output_names": list(outputs),
        "verbose": False,
    }
    try:
        with torch.no_grad(), quiet(), plain_attention():
            if options.exporter == "torchscript":
                moving = {name: dict(found) for name, found in axes.items() if found}
                values = tuple(inputs.values())
                torch.onnx.export(flat, values, str(path), dynamo=False, dynamic_axes=moving, **common)
            else:
                _dynamo(flat, inputs, axes, path, common)
    except Exception as cause:
        raise ExportError(
            f"the {options.exporter} exporter cannot export {flat.loaded.model} at opset {options.opset}: "
            f"{first_line(cause)}; {_remedy(options)}"
        ) from cause


def _dynamo(flat: Flat, inputs: Mapping[str, Tensor], axes: Axes, path: Path, common: dict[str, Any]) -> None:
    dims = {label: torch.export.Dim(label, min=1) for name in inputs for label in axes[name].values()}
    shapes = tuple({axis: dims[label] for axis, label in axes[name].items()} for name in inputs)
    program = torch.onnx.export(
        flat, tuple(inputs.values()), dynamo=True, dynamic_shapes={"values": shapes}, **common
    )
    if program is None:
        raise RuntimeError("torch returned no program")
    size = sum(tensor.nbytes for tensor in flat.state_dict().values())
    program.save(path, external_data=size > EMBEDDED_LIMIT)


def _remedy(options: Options) -> str:
    tries = ["--exporter torchscript --opset 17" if options.exporter == "dynamo" else "--exporter dynamo"]
    if options.batch is None:
        tries.append("a fixed --batch 1")
    return f"try {' or '.join(tries)}"


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Turn off nn.MultiheadAttention's fused path, for which the TorchScript exporter has no form."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
