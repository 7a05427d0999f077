"""Reading and writing models, and the weightless skeleton the analyses and checkers work on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokenrt.errors import ModelError
from tokenrt.files import atomic

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes past which weights go to a file beside the model (protobuf messages end at 2 GiB)."""

LARGE = 64 * 1024
"""Bytes from which an initializer that only feeds `WEIGHTED` operators leaves the skeleton."""

WEIGHTED = frozenset(
    "Attention Conv ConvInteger ConvTranspose DequantizeLinear Gather Gemm MatMul MatMulInteger QuantizeLinear".split()
)
"""Operators whose weights no shape, index or position computation reads."""

CONSTANTS = 4
"""The first IR version in which an initializer need not be an input."""

ModelLike = str | os.PathLike[str] | ir.Model


def load(source: ModelLike) -> ir.Model:
    """Read an ONNX model; a model given as an object is copied, so the caller's stays as it is.

    Weights stay on disk or shared until written. Raises: ModelError naming what is wrong with the file.
    """
    if isinstance(source, ir.Model):
        return _renewed(copy(source))
    path = Path(source)
    if not path.exists():
        raise ModelError(f"no such model file: {path}")
    if path.is_dir():
        raise ModelError(f"{path} is a directory; name the .onnx file inside it")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty (0 bytes); export the model again")
    try:
        model = ir.load(path)
    except Exception as cause:
        raise ModelError(
            f"{path} is not a readable ONNX model (truncated or another format): {_first_line(cause)}"
        ) from cause
    if not model.graph.outputs:
        raise ModelError(f"{path} holds no graph outputs; it is truncated or not an ONNX model")
    _check_names(model, path)
    _check_external(model, path)
    if opset(model) < 13:
        raise ModelError(
            f"{path} imports opset {opset(model)}; tokenrt needs 13 or later: export again with a higher opset, "
            "or convert it with onnx.version_converter"
        )
    return _renewed(model)


def _renewed(model: ir.Model) -> ir.Model:
    """In IR version 3 every constant is listed among the inputs as well; what is added to a model need not be, later."""
    if model.ir_version < CONSTANTS:
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        model.graph.inputs[:] = inputs
        model.ir_version = CONSTANTS
    return model


def check_target(target: str | os.PathLike[str], source: ModelLike | None = None) -> Path:
    """Whether a model can be written there, before any work is done. Raises: ModelError."""
    path = Path(target)
    if path.is_dir():
        raise ModelError(f"cannot write {path}: it is a directory; name a file inside it")
    if path.suffix != ".onnx":
        raise ModelError(f"cannot write {path}: a model's file name ends in .onnx")
    if not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: the directory {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ModelError(f"cannot write {path}: the directory {path.parent} cannot be written; name another")
    if source is not None and not isinstance(source, ir.Model) and path.resolve() == Path(source).resolve():
        raise ModelError(f"cannot write {path}: it is the model that is read; name another file")
    return path


def save(model: ir.Model, target: str | os.PathLike[str]) -> Path:
    """Write the model, all or nothing; past 2 GiB the weights go to `<target>.data` beside it."""
    path = check_target(target)
    if weight_bytes(model) < PROTOBUF_LIMIT:
        with atomic(path) as temporary:
            _write(model, temporary)
        return path
    data = path.with_name(path.name + ".data")
    with atomic(data) as weights, atomic(path) as temporary:
        ir.save(model, temporary, external_data=weights.name)
        _rename_location(temporary, weights.name, data.name)
    return path


@contextmanager
def on_disk(model: ModelLike) -> Iterator[Path]:
    """A file that holds the model: its own, or a temporary one for a model that is an object."""
    if not isinstance(model, ir.Model):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        path = save(model, Path(folder) / "model.onnx")
        del model
        yield path


def copy(model: ir.Model) -> ir.Model:
    """A model whose graph can be changed freely; weight tensors are shared, never duplicated."""
    with _detached(model) as weights:
        clone = ir.from_proto(ir.to_proto(model))
    attach(clone, weights)
    return clone


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model as a small proto whose large weights became graph inputs, and those weights by name."""
    with _detached(model) as weights:
        return ir.to_proto(model), weights


def attach(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Turn the inputs that stand for weights back into initializers."""
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        graph.register_initializer(value)


def substitute(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` was read; as a graph output it takes over the name."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}_replaced", old.name
        new.shape, new.type = old.shape, old.type
        graph.outputs[[*graph.outputs].index(old)] = new
    old.replace_all_uses_with(new)


def opset(model: ir.Model) -> int:
    """The version of the standard operators the model imports."""
    return int(model.opset_imports.get("", 0))


def weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


@contextmanager
def _detached(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    graph = model.graph
    large = {
        str(name): value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes >= LARGE
        and not value.is_graph_output()
        and all(node.op_type in WEIGHTED and node.graph is graph for node, _ in value.uses())
    }
    weights: dict[str, ir.TensorProtocol] = {}
    inputs, initializers = [*graph.inputs], [*graph.initializers.items()]
    listed = [value.name for value in inputs]
    for name, value in large.items():
        tensor = value.const_value
        assert tensor is not None
        weights[name] = tensor
        value.shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
        value.type = ir.TensorType(tensor.dtype)
        del graph.initializers[name]
        value.const_value = None
        if name not in listed:
            graph.inputs.append(value)
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    try:
        yield weights
    finally:
        attach(model, weights)
        # The model may be the caller's: it leaves as it came, order included.
        graph.inputs[:] = inputs
        graph.initializers.clear()
        graph.initializers.update(initializers)


def _write(model: ir.Model, path: Path) -> None:
    """Write one file, weight by weight, so that no second copy of the weights is ever in memory.

    A message's fields may come in any order, so the graph is its skeleton followed by the large initializers.
    """
    import onnx

    proto, weights = skeleton(model)
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = {
        name: onnx.TensorProto(
            name=name, dims=[int(d) for d in tensor.shape.numpy()], data_type=tensor.dtype.value
        )
        for name, tensor in weights.items()
    }
    frames = {
        name: heads[name].SerializeToString() + _field(9, tensor.nbytes) for name, tensor in weights.items()
    }
    lengths = {name: len(frames[name]) + tensor.nbytes for name, tensor in weights.items()}
    total = len(graph) + sum(len(_field(5, length)) + length for length in lengths.values())
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_field(7, total))
        file.write(graph)
        for name, tensor in weights.items():
            file.write(_field(5, lengths[name]))
            file.write(frames[name])
            file.write(tensor.tobytes())


def _field(number: int, length: int) -> bytes:
    """The tag and length that precede a length-delimited protobuf field."""
    data = bytearray([number << 3 | 2])
    while length > 0x7F:
        data.append(length & 0x7F | 0x80)
        length >>= 7
    data.append(length)
    return bytes(data)


def _check_names(model: ir.Model, path: Path) -> None:
    """Damage inside a name reads as a graph whose parts do not meet."""
    for node in model.graph:
        for text in (node.op_type, node.domain, *(value.name for value in node.inputs if value is not None)):
            if isinstance(text, bytes):
                raise ModelError(f"{path} is damaged: {text!r} is no name; export the model again")
        for value in node.inputs:
            if value is not None and not (
                value.producer() or value.is_graph_input() or value.is_initializer()
            ):
                raise ModelError(
                    f"{path} is damaged: {node.op_type} node {node.name!r} reads {value.name!r}, which nothing makes"
                )


def _check_external(model: ir.Model, path: Path) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            if not file.exists():
                raise ModelError(f"{path} keeps its weights in {file.name}, which is missing beside it")
            need = (tensor.offset or 0) + (tensor.length or 0)
            if file.stat().st_size < need:
                raise ModelError(
                    f"{file} is truncated: {value.name} needs {need} bytes, the file has {file.stat().st_size}"
                )


def _rename_location(path: Path, old: str, new: str) -> None:
    import onnx

    proto = onnx.load(os.fspath(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    path.write_bytes(proto.SerializeToString())


def _first_line(cause: BaseException) -> str:
    return (str(cause) or type(cause).__name__).strip().splitlines()[0][:300]
