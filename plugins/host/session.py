"""Run a whole reduced model in ONNX Runtime, its tokenrt nodes by the CUDA kernels compiled for the CPU."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError, UnsupportedError
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.passes.ops.contract import Array, Operator
from tokenrt.plugins.host import kernels as host
from tokenrt.plugins.host.launches import INDICES, KERNELS, TYPES

PYTHON_DOMAIN = "ai.onnx.contrib"
"""Where onnxruntime-extensions looks for operators that are Python functions."""

FLOAT, INT64 = 1, 7
NARROW: Mapping[int, str] = {10: "float16", 16: "bfloat16"}
"""Types that do not reach a Python operator: they travel as float32, exactly, and are narrowed for the kernel."""

Kernel = Callable[..., Any]

_numbers = itertools.count()
_calls: MutableMapping[int, Kernel] = WeakValueDictionary()
"""What each node of the sessions that are alive runs, by its number."""


class HostSession:
    """A model whose tokenrt nodes run their kernels and whose other nodes run in ONNX Runtime.

    An exception must not leave a Python operator (it would end the process), so the first one is kept and raised by
    `run`, where it belongs.

    Raises: DependencyError without onnxruntime-extensions; UnsupportedError for an operator without a kernel, or where
    there is no C++ compiler; TokenrtError for a model without tokenrt nodes.
    """

    def __init__(self, model: str | os.PathLike[str] | Any) -> None:
        import onnx
        import onnxruntime

        library = _entered()
        host.library()
        proto = onnx.ModelProto()
        proto.CopyFrom(model if isinstance(model, onnx.ModelProto) else _loaded(model))
        self._fault: Exception | None = None
        self._kernels = self._rewire(proto)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(library)
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.calls = 0
        """Kernels run so far."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Return the outputs by name. Raises: what a kernel refused, as UnsupportedError."""
        self._fault = None
        names = [output.name for output in self._session.get_outputs()]
        try:
            found = self._session.run(names, dict(feeds))
        finally:
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault
        return dict(zip(names, found, strict=True))

    def _rewire(self, proto: Any) -> list[Kernel]:
        """Turn each tokenrt node into a Python operator; returns what they run, which must live on."""
        types = _types(proto)
        nodes = [node for node in proto.graph.node if node.domain == DOMAIN]
        if not nodes:
            raise TokenrtError(
                "the model has no tokenrt nodes, so there is no kernel to run; reduce it first, and do not lower it"
            )
        kept, kernels = [], []
        for node in proto.graph.node:
            if node.domain != DOMAIN:
                kept.append(node)
                continue
            replaced, kernel = self._replaced(node, types)
            kept.extend(replaced)
            kernels.append(kernel)
        del proto.graph.node[:]
        proto.graph.node.extend(kept)
        functions = [function for function in proto.functions if function.domain != DOMAIN]
        del proto.functions[:]
        proto.functions.extend(functions)
        opset = proto.opset_import.add()
        opset.domain, opset.version = PYTHON_DOMAIN, 1
        return kernels

    def _replaced(self, node: Any, types: Mapping[str, int]) -> tuple[list[Any], Kernel]:
        from onnx import helper

        if node.op_type not in KERNELS:
            raise UnsupportedError(
                f"node {node.name!r}: operator {node.op_type} has no CUDA kernel in this version; kernels: "
                f"{', '.join(KERNELS)}"
            )
        operator = OPERATORS[node.op_type]
        given = [_known(name, node, types) for name in node.input]
        made = [
            given[operator.inputs.index(kind)] if kind in operator.inputs else _NUMBERS[kind]
            for kind in operator.types
        ]
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        before, inputs = _widened(node, given)
        outputs = [
            f"{name}_wide" if kind in NARROW else name for name, kind in zip(node.output, made, strict=True)
        ]
        after = [
            helper.make_node("Cast", [wide], [name], to=kind)
            for wide, name, kind in zip(outputs, node.output, made, strict=True)
            if kind in NARROW
        ]
        kernel, number = self._kernel(operator, attributes, given, made), next(_numbers)
        _calls[number] = kernel
        call = helper.make_node(
            node.op_type, inputs, outputs, name=node.name, domain=PYTHON_DOMAIN, node=number
        )
        return [*before, call, *after], kernel

    def _kernel(
        self, operator: Operator, attributes: Mapping[str, Any], given: Sequence[int], made: Sequence[int]
    ) -> Kernel:
        def kernel(*arrays: Array) -> Any:
            try:
                own = [_narrowed(array, kind) for array, kind in zip(arrays, given, strict=True)]
                found = host.run(operator.name, own, operator.settle(attributes))
                self.calls += 1
            except Exception as error:
                self._fault = self._fault or error
                found = tuple(np.zeros((1, 1, 1), np.int64 if kind == INT64 else np.float32) for kind in made)
            wide = [array.astype(np.float32) if array.dtype.name in TYPES else array for array in found]
            return tuple(wide) if len(wide) > 1 else wide[0]

        return kernel


_NUMBERS: Mapping[str, int] = {"float32": FLOAT, "int64": INT64}


@functools.cache
def _entered() -> str:
    """Enter the operators among those of the extensions, and return the library that has them.

    The extensions keep one table for the whole process, to which sessions point and which moves when it grows: so each operator
    is entered once and before the first session, and a node names itself by a number.

    Raises: DependencyError without onnxruntime-extensions.
    """
    try:
        import onnxruntime_extensions as extensions
    except ImportError as error:
        raise DependencyError(
            "onnxruntime-extensions", "plugins", "running a whole model by the kernels"
        ) from error
    floats, places = extensions.PyOp.dt_float, extensions.PyOp.dt_int64
    for name in KERNELS:
        operator = OPERATORS[name]
        extensions.onnx_op(
            op_type=name,
            inputs=[places if given in INDICES else floats for given in operator.inputs],
            outputs=[places if kind == "int64" else floats for kind in operator.types],
            attrs={"node": places},
        )(_run)
    return str(extensions.get_library_path())


def _run(*arrays: Array, node: int) -> Any:
    return _calls[node](*arrays)


def _loaded(model: Any) -> Any:
    import onnx
    import onnx_ir as ir

    return ir.to_proto(model) if isinstance(model, ir.Model) else onnx.load(os.fspath(model))


def _types(proto: Any) -> dict[str, int]:
    """Return the element type of every value that shape inference finds one for."""
    import onnx.shape_inference

    graph = onnx.shape_inference.infer_shapes(proto).graph
    typed = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return typed | {value.name: value.data_type for value in graph.initializer}


def _known(name: str, node: Any, types: Mapping[str, int]) -> int:
    if not types.get(name):
        raise UnsupportedError(
            f"node {node.name!r}: the element type of its input {name!r} is unknown to shape inference"
        )
    return types[name]


def _widened(node: Any, kinds: Sequence[int]) -> tuple[list[Any], list[str]]:
    """Return nodes that widen inputs of half types to float32, and the names to read instead."""
    from onnx import helper

    names = [
        f"{node.output[0]}_{name}_wide" if kind in NARROW else name
        for name, kind in zip(node.input, kinds, strict=True)
    ]
    casts = [
        helper.make_node("Cast", [name], [wide], to=FLOAT)
        for name, wide in zip(node.input, names, strict=True)
        if name != wide
    ]
    return casts, names


def _narrowed(array: Array, kind: int) -> Array:
    if kind not in NARROW:
        return array
    if kind == 16:
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(NARROW[kind])
