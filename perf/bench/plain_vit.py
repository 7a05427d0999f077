"""A plain vision transformer written as ONNX directly: seeded weights go to disk one by one, however many there are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tokenrt.files import atomic

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 18, 10


@dataclass(frozen=True)
class PlainViT:
    """Pre-norm blocks, fused qkv, a class token that is classified; the defaults are ViT-H/14 (632 M parameters)."""

    width: int = 1280
    heads: int = 16
    blocks: int = 32
    patch: int = 14
    image: int = 224
    classes: int = 1000

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2 + 1

    def write(self, path: str | os.PathLike[str], seed: int | None = 0) -> Path:
        """Write the model at `path` and its weights beside it in `<path>.data`.

        Without a seed the weights are a hole in that file: zeros that take no room, for what reads shapes only.
        """
        target = Path(path)
        data = target.with_name(target.name + ".data")
        with atomic(data) as weights, atomic(target) as temporary:
            with weights.open("wb") as stream:
                model = _Writer(self, stream, data.name, seed).model()
            temporary.write_bytes(model.SerializeToString())
        return target


class _Writer:
    """Nodes and initializers of one model; the bytes of a weight leave as soon as they are drawn."""

    def __init__(self, form: PlainViT, stream: IO[bytes], location: str, seed: int | None) -> None:
        self.form, self.stream, self.location = form, stream, location
        self.random = None if seed is None else np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        form = self.form
        picture = helper.make_tensor_value_info(
            "pixel_values", TensorProto.FLOAT, ["batch", 3, form.image, form.image]
        )
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", form.classes])
        x = self.tokens("pixel_values")
        for block in range(form.blocks):
            x = self.block(x, f"block{block}")
        last = self.node("Gather", "class", self.norm(x, "norm"), self.constant("first", np.int64(0)), axis=1)
        self.node("Identity", "logits", self.linear(last, "head", form.width, form.classes))
        graph = helper.make_graph(self.nodes, "plain_vit", [picture], [logits], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def tokens(self, picture: str) -> str:
        form = self.form
        kernel = self.weight("patch.weight", (form.width, 3, form.patch, form.patch), 3 * form.patch**2)
        grid = self.node("Conv", "patches", picture, kernel, strides=[form.patch, form.patch])
        rows = self.node(
            "Reshape", "rows", grid, self.constant("rows.shape", [0, form.width, form.tokens - 1])
        )
        patches = self.node("Transpose", "embedded", rows, perm=[0, 2, 1])
        batch = self.node("Shape", "images", picture, start=0, end=1)
        shape = self.node("Concat", "class.shape", batch, self.constant("one", [1, form.width]), axis=0)
        first = self.node("Expand", "class.token", self.weight("class.weight", (1, 1, form.width), 1), shape)
        every = self.node("Concat", "sequence", first, patches, axis=1)
        return self.node("Add", "placed", every, self.weight("positions", (1, form.tokens, form.width), 4))

    def block(self, x: str, name: str) -> str:
        form = self.form
        depth = form.width // form.heads
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.qkv", form.width, 3 * form.width)
        split = self.constant("split.shape", [0, 0, 3, form.heads, depth])
        parts = self.node(
            "Transpose",
            f"{name}.parts",
            self.node("Reshape", f"{name}.split", qkv, split),
            perm=[2, 0, 3, 1, 4],
        )
        q, k, v = (
            self.node(
                "Gather", f"{name}.{part}", parts, self.constant(f"part{place}", np.int64(place)), axis=0
            )
            for place, part in enumerate("qkv")
        )
        scaled = self.node("Mul", f"{name}.scaled", q, self.constant("scale", np.float32(depth**-0.5)))
        scores = self.node(
            "MatMul", f"{name}.scores", scaled, self.node("Transpose", f"{name}.kt", k, perm=[0, 1, 3, 2])
        )
        mixed = self.node(
            "MatMul", f"{name}.mixed", self.node("Softmax", f"{name}.attention", scores, axis=-1), v
        )
        joined = self.node("Transpose", f"{name}.joined", mixed, perm=[0, 2, 1, 3])
        flat = self.node("Reshape", f"{name}.flat", joined, self.constant("flat.shape", [0, 0, form.width]))
        x = self.node("Add", f"{name}.first", x, self.linear(flat, f"{name}.proj", form.width, form.width))
        hidden = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.fc1", form.width, 4 * form.width)
        erf = self.node(
            "Erf",
            f"{name}.erf",
            self.node("Mul", f"{name}.root", hidden, self.constant("root", np.float32(0.5**0.5))),
        )
        gate = self.node("Add", f"{name}.gate", erf, self.constant("unit", np.float32(1)))
        half = self.node("Mul", f"{name}.half", hidden, self.constant("half", np.float32(0.5)))
        gelu = self.node("Mul", f"{name}.gelu", half, gate)
        return self.node(
            "Add", f"{name}.second", x, self.linear(gelu, f"{name}.fc2", 4 * form.width, form.width)
        )

    def norm(self, x: str, name: str) -> str:
        width = (self.form.width,)
        scale = self.weight(f"{name}.weight", width, 100, mean=1.0)
        return self.node(
            "LayerNormalization", f"{name}.out", x, scale, self.weight(f"{name}.bias", width, 100), axis=-1
        )

    def linear(self, x: str, name: str, inner: int, outer: int) -> str:
        product = self.node(
            "MatMul", f"{name}.product", x, self.weight(f"{name}.weight", (inner, outer), inner)
        )
        return self.node("Add", f"{name}.out", product, self.weight(f"{name}.bias", (outer,), 100))

    def node(self, operator: str, output: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, list(inputs), [output], name=f"{output}.{operator}", **attributes)
        )
        return output

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        if all(tensor.name != name for tensor in self.weights):
            array = np.asarray(value, None if isinstance(value, np.generic) else np.int64)
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, shape: tuple[int, ...], inputs: int, mean: float = 0.0) -> str:
        """Draw a weight of variance 1 / inputs and refer to its bytes in the data file."""
        import onnx
        from onnx.external_data_helper import set_external_data

        offset = self.stream.tell()
        size = 4 * prod(shape)
        if self.random is None:
            self.stream.truncate(offset + size)
            self.stream.seek(offset + size)
        else:
            values = mean + self.random.standard_normal(shape, np.float32) * np.float32(inputs**-0.5)
            self.stream.write(values.astype("<f4").tobytes())
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
        # The helper takes only tensors that hold bytes of their own.
        tensor.raw_data = b""
        set_external_data(tensor, self.location, offset, size)
        self.weights.append(tensor)
        return name
