"""Selecting, matching and merging as TensorRT's quick deployable plugins: PTX in the engine, no library to ship.

`register()` makes them known to this process before a network is made or an ONNX file with bare `tokenrt` nodes is
parsed (`tokenrt lower --plugin`); the engine that is built runs without this package. Needs TensorRT 10.9 and nvcc where
the engine is built, and the network flag PREFER_AOT_PYTHON_PLUGINS. TensorRT takes no machine code here, so the driver
compiles the PTX at each load of an engine, or takes it from its cache. Nothing of the host runs with an engine: a tensor that
does not begin on 16 bytes, and a batch of 0, are served by the plugin library alone. Unverified: no GPU has run them yet; their
kernels are verified on the host.
"""

from __future__ import annotations

import ctypes
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing

from tokenrt.errors import DependencyError, UnsupportedError
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.passes.ops.contract import Operator
from tokenrt.plugins import quick_kernels
from tokenrt.plugins.toolchain import nvcc

OLDEST = (10, 9)
"""The first TensorRT whose plugins written in Python may hold a kernel."""

ARCHITECTURE = 75
"""Whose PTX every GPU from Turing on can run; for an engine that is built without a GPU to ask."""

MAJOR, MINOR = 75, 76
"""Numbers of the two halves of a capability among the attributes of a device, in cuda.h."""

ANNOTATIONS: Mapping[str, Any] = {"int": int, "ints": np.typing.NDArray[np.int32]}
"""Kinds of attributes -> the type TensorRT wants to see on a parameter."""

Sizes = Callable[[Sequence[Any], Mapping[str, Any]], tuple[tuple[Any, ...], ...]]


def _pairs(shapes: Sequence[Any], given: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    counts = len(given["sources"]), given["keep"][0], given["remove"][0], given["remove"][0]
    return tuple((shapes[0][0], count) for count in counts)


def _merged(shapes: Sequence[Any], keep: Any) -> tuple[tuple[Any, ...], ...]:
    return (shapes[0][0], keep, shapes[0][2]), (shapes[0][0], keep, 1)


SHAPES: Mapping[str, Sizes] = {
    "TokenSelect": lambda shapes, given: ((shapes[0][0], given["keep"][0]),),
    "TokenMatch": _pairs,
    "TokenCombine": lambda shapes, given: _merged(shapes, shapes[2][1]),
    "TokenMerge": lambda shapes, given: (*_merged(shapes, given["keep"][0]), *_pairs(shapes, given)),
}
"""Operator -> the shapes of its outputs, from those of its inputs and its attributes."""


def register(arch: int | None = None) -> tuple[str, ...]:
    """Make the plugins known to TensorRT in this process; returns their names.

    arch: whose PTX goes into the engines, as 89; that of this machine's GPU where it is left out, for which TensorRT builds.
    Not together with the plugin library: TensorRT takes one plugin of a name.

    Raises: DependencyError without TensorRT; UnsupportedError where it is too old.
    """
    tensorrt, own = _tensorrt(), here() if arch is None else arch
    for name in quick_kernels.KERNELS:
        _register(tensorrt, OPERATORS[name], own)
    return tuple(quick_kernels.KERNELS)


def here() -> int:
    """The newest architecture that nvcc compiles for and the first GPU of this machine runs; ARCHITECTURE where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ARCHITECTURE
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    )
    capability = 0 if failed else 10 * major.value + minor.value
    known = nvcc.toolkit().architectures if capability else ()
    return max((arch for arch in known if arch <= capability), default=ARCHITECTURE)


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise DependencyError("tensorrt", "tensorrt", "quick deployable plugins") from error
    release = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    told = f"quick deployable plugins with a kernel need TensorRT {'.'.join(map(str, OLDEST))} or later"
    if release < OLDEST:
        raise UnsupportedError(
            f"{told}, and this is {tensorrt.__version__}; use the plugin library: tokenrt plugins build"
        )
    try:
        import tensorrt.plugin as plugin
    except ImportError as error:
        raise UnsupportedError(f"{told}; {tensorrt.__version__} has no tensorrt.plugin: {error}") from error
    if not hasattr(plugin, "aot_impl"):
        raise UnsupportedError(f"{told}; {tensorrt.__version__} was installed without them")
    return tensorrt


def _register(tensorrt: Any, operator: Operator, arch: int) -> None:
    plugin, inputs = tensorrt.plugin, len(operator.inputs)

    def describe(*tensors: Any, **given: Any) -> tuple[Any, ...]:
        shapes = SHAPES[operator.name]([tensor.shape_expr for tensor in tensors], _plain(given))
        return tuple(
            _described(plugin, tensors[0], shape, _type(tensorrt, operator, kind, tensors))
            for shape, kind in zip(shapes, operator.types, strict=True)
        )

    def build(*given: Any) -> tuple[str, str, Any, Any]:
        tensors, values = given[:inputs], given[inputs:-2]
        attributes = _plain(dict(zip(operator.attributes, values, strict=True)))
        known = {tensorrt.float32: "float32", tensorrt.float16: "float16", tensorrt.bfloat16: "bfloat16"}
        kinds = [known.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors]
        made = quick_kernels.kernel(
            operator.name, kinds, [list(tensor.shape) for tensor in tensors], attributes
        )
        launch = plugin.KernelLaunchParams()
        batch = tensors[0].shape_expr[0]
        launch.grid_x, launch.grid_y, launch.grid_z = (
            batch if size == quick_kernels.BATCH else size for size in made.grid
        )
        launch.block_x = made.threads
        return made.name, quick_kernels.ptx(made, arch), launch, plugin.SymIntExprs.from_tuple([])

    # TensorRT reads names and types off the signatures, which here follow the operator's contract.
    tensors = [_parameter(name, plugin.TensorDesc) for name in operator.inputs]
    attributes = [_parameter(name, ANNOTATIONS[kind]) for name, kind in operator.attributes.items()]
    outputs = _tuple(*[plugin.TensorDesc] * len(operator.outputs))
    sign(describe, [*tensors, *attributes], outputs)
    rest = [_parameter("outputs", _tuple(plugin.TensorDesc)), _parameter("tactic", int)]
    returned = _tuple(str, str, plugin.KernelLaunchParams, plugin.SymIntExprs)
    sign(build, [*tensors, *attributes, *rest], returned)
    plugin.register(f"{DOMAIN}::{operator.name}")(describe)
    plugin.aot_impl(f"{DOMAIN}::{operator.name}")(build)


def _tuple(*kinds: Any) -> Any:
    """The type of a tuple of these, which are known only now."""
    return types.GenericAlias(tuple, kinds)


def sign(function: Any, parameters: Sequence[inspect.Parameter], returned: Any) -> None:
    """Give a function the signature that others see."""
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)


def _parameter(name: str, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as the kernels take them: numbers, and lists of numbers."""
    return {
        name: [int(item) for item in value] if np.ndim(value) else int(value) for name, value in given.items()
    }


def _type(tensorrt: Any, operator: Operator, kind: str, tensors: Sequence[Any]) -> Any:
    if kind in operator.inputs:
        return tensors[operator.inputs.index(kind)].dtype
    return getattr(tensorrt, kind)


def _described(plugin: Any, like: Any, shape: Sequence[Any], kind: Any) -> Any:
    made = like.like()
    made.shape_expr, made.dtype = plugin.ShapeExprs.from_tuple(shape), kind
    return made
