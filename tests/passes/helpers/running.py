"""Zoo models in ONNX Runtime: which file, what to feed it, what it says, how many tokens its attentions see."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from tests import zoo

Array = np.ndarray[Any, np.dtype[Any]]
Model = str | os.PathLike[str] | ir.Model | onnx.ModelProto

# What the exporter itself cannot do, with its reason; everything else must work.
UNEXPORTABLE = {
    ("torchscript", "hf_dinov2_registers"): "aten::_upsample_bicubic2d_aa has no ONNX form at opset 17",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One zoo model, exported one way."""

    name: str
    opset: int = 17
    exporter: str = "torchscript"
    batch: str | int = "dynamic"
    dtype: str = "fp32"
    fused: str | bool = False

    def __str__(self) -> str:
        parts = [self.name, f"op{self.opset}"]
        parts += [self.exporter] if self.exporter == "torchscript" and self.opset != 17 else []
        parts += [self.dtype] if self.dtype != "fp32" else []
        parts += [f"batch{self.batch}"] if self.batch != "dynamic" else []
        return "-".join([*parts, str(self.fused)] if self.fused else parts)

    def path(self) -> Path:
        """The exported file; skips the test, with the reason, where the exporter cannot make it."""
        reason = UNEXPORTABLE.get((self.exporter, self.name))
        if reason is not None:
            pytest.skip(f"{self.name} through {self.exporter}: {reason}")
        return zoo.onnx(
            self.name,
            self.opset,
            exporter=self.exporter,
            batch=self.batch,
            dtype=self.dtype,
            fused=self.fused,
        )

    @property
    def shape(self) -> dict[str, tuple[int | str, ...]] | None:
        """The `--shape` that a model with a dynamic token axis needs."""
        if "dynamic-tokens" not in zoo.entry(self.name).tags:
            return None
        return dict.fromkeys(("input_ids", "attention_mask"), ("B", 32))


REFUSED = ("timm_vit_parallel_things",)
POSITIVE = tuple(name for name in zoo.names("positive") if name not in REFUSED)
FUSABLE = tuple(name for name in POSITIVE if zoo.entry(name).fuse is not None)


def exported(names: Iterable[str] = POSITIVE) -> list[Variant]:
    """Each through the fast exporter; those it cannot make, through the other."""
    return [dynamo(n) if ("torchscript", n) in UNEXPORTABLE else Variant(n) for n in names]


def params(default: Iterable[Variant], slow: Iterable[Variant] = ()) -> list[Any]:
    """pytest parameters with the variants' names as ids; those not among the default carry the slow marker."""
    first = list(dict.fromkeys(default))
    rest = [variant for variant in dict.fromkeys(slow) if variant not in first]
    return [pytest.param(variant, id=str(variant)) for variant in first] + [
        pytest.param(variant, id=str(variant), marks=pytest.mark.slow) for variant in rest
    ]


def dynamo(name: str, opset: int = 18, **options: Any) -> Variant:
    return Variant(name, opset, "dynamo", **options)


def feeds(name: str, batch: int = 2, seed: int = 1) -> dict[str, Array]:
    return {key: value.numpy() for key, value in zoo.examples(name, batch, seed).items()}


def session(model: Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Changing layouts too crashes ONNX Runtime 1.31 on convolutions in fp16.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    source: Any = model
    if isinstance(model, ir.Model):
        source = ir.to_proto(model).SerializeToString()
    elif isinstance(model, onnx.ModelProto):
        source = model.SerializeToString()
    else:
        source = str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: Model | onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> list[Array]:
    """Outputs of a model; floating-point inputs are cast to what it declares."""
    made = model if isinstance(model, onnxruntime.InferenceSession) else session(model)
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    given = {
        item.name: inputs[item.name].astype(kinds.get(item.type, inputs[item.name].dtype))
        for item in made.get_inputs()
    }
    outputs: list[Array] = made.run(None, given)
    return outputs


def rows(outputs: Sequence[Array], order: Sequence[int] | slice) -> list[Array]:
    return [output[order] for output in outputs]


def distance(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Largest absolute difference over all outputs, which must agree in number and shape."""
    assert [output.shape for output in found] == [output.shape for output in wanted]
    pairs = zip(found, wanted, strict=True)
    return max(float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) for a, b in pairs)


def close(found: Sequence[Array], wanted: Sequence[Array], tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value, or absolutely where that is below one."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        allowed = tolerance * max(1.0, float(np.max(np.abs(b.astype(np.float64)))))
        worst = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
        assert worst <= allowed, f"differs by {worst:.3g}, allowed {allowed:.3g}"


def attended(model: Model, inputs: Mapping[str, Array]) -> list[int]:
    """Keys that each self-attention of the main graph really sees, in graph order, by running the model."""
    proto = onnx.ModelProto()
    proto.CopyFrom(onnx.load(model) if isinstance(model, str | os.PathLike) else _proto(model))
    watched = []
    for node in proto.graph.node:
        if node.name.startswith("tokenrt_"):
            continue  # an attention that a method reads, made once more
        if node.op_type == "Softmax":
            watched.append((node.output[0], -1))
        elif node.op_type == "Attention":
            watched.append((node.input[1], -2))
    for name, _ in watched:
        if name not in {value.name for value in proto.graph.output}:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    made = session(proto)
    names = [name for name, _ in watched]
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    given = {
        item.name: inputs[item.name].astype(kinds.get(item.type, inputs[item.name].dtype))
        for item in made.get_inputs()
    }
    results = made.run(names, given)
    return [found.shape[axis] for found, (_, axis) in zip(results, watched, strict=True)]


def _proto(model: Any) -> onnx.ModelProto:
    return ir.to_proto(model) if isinstance(model, ir.Model) else model


@cache
def original(variant: Variant) -> onnxruntime.InferenceSession:
    return session(variant.path())
