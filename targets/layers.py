"""The layers of an engine behind fusion, about one launch each, as TensorRT-RTX tells them without a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from tokenrt.targets.rtx.builder import compile_engine


def layers(model: ir.Model, *, capability: str, batch: int) -> tuple[tuple[str, ...], ...]:
    """The layers of the engine of a model for this many images, each as the names of the nodes that went into it.

    The model is built as it is: no form is chosen for it.

    Raises: BuildError in the builder's words, DependencyError where it is missing, TargetError for another capability.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        ir.save(model, file)
        engine = compile_engine(
            file,
            Path(folder) / "engine",
            capabilities=[capability],
            batch=(batch, batch, batch),
            nodes={},
            layers=True,
        )
    assert engine.layers is not None
    return engine.layers
