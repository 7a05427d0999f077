"""A model that one test had prepared is not prepared again for the next: preparing is most of what a reduction takes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from tokenrt.passes.analysis import protected
from tokenrt.passes.analysis.prepare import Prepared, Protect, prepare

MODELS = 160
"""Prepared models held at once."""

LARGEST = 8 * 2**20
"""Bytes from which a model is prepared each time: its weights would stay in memory."""

EXTERNAL = b"\x0a\x08location\x12"
"""How an entry begins, in bytes, that says where weights lie outside of the file."""

HELD: OrderedDict[Any, tuple[Prepared, int]] = OrderedDict()


def once(model: Any, shape: Any = None, protect: Protect = None) -> Prepared:
    """`prepare`, whose result is shared where the model and the options were the same before.

    Plans are made from it and applied to copies; that this leaves it as it was is checked before each further use.
    """
    key = _key(model, shape, protect)
    if key is None:
        return prepare(model, shape, protect)
    if key not in HELD:
        found = prepare(model, shape, protect)
        HELD[key] = found, _state(found)
        if len(HELD) > MODELS:
            HELD.popitem(last=False)
    HELD.move_to_end(key)
    found, state = HELD[key]
    assert _state(found) == state, f"what was prepared of {model} was changed by who used it before"
    return found


def _key(model: Any, shape: Any, protect: Protect) -> Any:
    """What decides the result: the model's bytes, its files beside it as they lie there, the options. None for large models."""
    if not isinstance(shape, Mapping | list | tuple | None):
        return None
    content = _object(model) if isinstance(model, ir.Model) else _file(Path(model))
    if content is None:
        return None
    axes = tuple(shape.items()) if isinstance(shape, Mapping) else tuple(shape or ())
    return hashlib.sha256(content).digest(), isinstance(model, ir.Model), repr(axes), protected.text(protect)


def _file(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    content = path.read_bytes()
    if EXTERNAL not in content:
        return content
    try:
        proto = onnx.load_from_string(content)
    except Exception:  # damaged: `prepare` says how
        return None
    entries = [entry for tensor in proto.graph.initializer for entry in tensor.external_data]
    files = sorted({path.parent / entry.value for entry in entries if entry.key == "location"})
    if not all(map(Path.is_file, files)) or sum(file.stat().st_size for file in files) > LARGEST:
        return None
    states = [(file.name, file.stat().st_ino, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return content + repr((path.resolve(), states)).encode()


def _object(model: ir.Model) -> bytes | None:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        return None
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) > LARGEST:
        return None
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _state(found: Prepared) -> int:
    """The graph by names: its nodes, what they read and make, and the initializers."""
    graph = found.model.graph
    nodes = [
        (
            node.op_type,
            *(value and value.name for value in node.inputs),
            *(value.name for value in node.outputs),
        )
        for node in graph
    ]
    ends = [value.name for value in (*graph.inputs, *graph.outputs)]
    return hash((*nodes, *ends, *graph.initializers))
