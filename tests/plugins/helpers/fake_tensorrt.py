"""A stand-in for `tensorrt` with `tensorrt.plugin`, as strict about what it is given as the real one of 10.9 is.

It checks what the real decorators check (names, annotations, order of parameters, return types) and walks a plugin
through the calls that building an engine makes. It runs no kernel, and is no proof that TensorRT takes them.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

float32, float16, bfloat16, int64, int32 = "FLOAT", "HALF", "BF16", "INT64", "INT32"
BUILTIN = (int, float, bytes, bool, str)
ARRAYS = {
    np.dtype(name) for name in ("int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
}


class SymInt32:
    """A number, or one that is known when the engine runs; `value` is None then."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, int | SymInt32):
            raise TypeError(f"neither a number nor an expression: {value!r}")
        self.value: int | None = value.value if isinstance(value, SymInt32) else value


class ShapeExpr(SymInt32):
    """A size of a tensor."""


class ShapeExprs:
    def __init__(self, sizes: Sequence[Any]) -> None:
        self.sizes = list(sizes)

    @classmethod
    def from_tuple(cls, sizes: Sequence[Any]) -> ShapeExprs:
        return cls([size if isinstance(size, ShapeExpr) else ShapeExpr(size) for size in sizes])

    def __getitem__(self, place: int) -> Any:
        return self.sizes[place]

    def __len__(self) -> int:
        return len(self.sizes)


class SymIntExprs:
    def __init__(self, length: int) -> None:
        self.items: list[Any] = [None] * length

    @classmethod
    def from_tuple(cls, items: Sequence[Any]) -> SymIntExprs:
        made = cls(len(items))
        made.items = list(items)
        return made

    def __setitem__(self, place: int, item: Any) -> None:
        self.items[place] = item


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams has no {name}")
        self.__dict__[name] = SymInt32(value)


class TensorDesc:
    """`shape` is there only once a kernel is asked for; what was given as input cannot be changed."""

    def __init__(self, shape_expr: ShapeExprs, dtype: str) -> None:
        self.__dict__.update(shape_expr=shape_expr, dtype=dtype, _shape=None, _fixed=False)

    @property
    def shape(self) -> Any:
        if self.__dict__["_shape"] is None:
            raise ValueError("no shape is known at this stage")
        return self.__dict__["_shape"]

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape_expr, self.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__["_fixed"]:
            raise ValueError("this description cannot be changed")
        if name not in ("shape_expr", "dtype"):
            raise AttributeError(name)
        self.__dict__[name] = value

    def fixed(self, shape: Sequence[int] | None = None) -> TensorDesc:
        self.__dict__.update(_fixed=True, _shape=None if shape is None else list(shape))
        return self


class Definition:
    def __init__(self, describe: Callable[..., Any]) -> None:
        self.describe, self.build = describe, None
        self.tensors: list[str] = []
        self.attributes: dict[str, Any] = {}
        self.outputs = 0


REGISTRY: dict[str, Definition] = {}


def register(identity: str) -> Callable[[Callable[..., Any]], Any]:
    space, name = identity.split("::")
    assert "." not in identity
    assert space not in ("", "trt", "tensorrt", "std")
    if identity in REGISTRY:
        raise ValueError(f"{name} is registered already")

    def decorate(describe: Callable[..., Any]) -> Definition:
        made = Definition(describe)
        signature = inspect.signature(describe)
        for parameter in signature.parameters.values():
            _plain(parameter)
            kind = parameter.annotation
            if isinstance(kind, type) and not typing.get_origin(kind) and issubclass(kind, TensorDesc):
                assert not made.attributes, "tensors come before attributes"
                made.tensors.append(parameter.name)
                continue
            assert made.tensors, "tensors come first"
            assert parameter.name not in ("outputs", "stream", "tactic")
            if kind not in BUILTIN:
                assert typing.get_origin(kind) is np.ndarray, kind
                assert np.dtype(typing.get_args(typing.get_args(kind)[1])[0]) in ARRAYS
            made.attributes[parameter.name] = kind
        made.outputs = len(_tuple_of(signature.return_annotation, TensorDesc))
        REGISTRY[identity] = made
        return made

    return decorate


def aot_impl(identity: str) -> Callable[[Callable[..., Any]], Any]:
    made = REGISTRY[identity]

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(build)
        assert list(signature.parameters) == [*made.tensors, *made.attributes, "outputs", "tactic"]
        for name, parameter in signature.parameters.items():
            if name in made.attributes:
                assert parameter.annotation == made.attributes[name]
        _tuple_of(signature.parameters["outputs"].annotation, TensorDesc)
        assert issubclass(signature.parameters["tactic"].annotation, int)
        assert typing.get_args(signature.return_annotation) == (str, str, KernelLaunchParams, SymIntExprs)
        made.build = build  # type: ignore[assignment]
        return build

    return decorate


def _plain(parameter: inspect.Parameter) -> None:
    assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameter.annotation is not inspect.Parameter.empty
    assert not isinstance(parameter.annotation, str), "TensorRT does not resolve annotations written as text"
    assert parameter.default is inspect.Parameter.empty


def _tuple_of(kind: Any, item: type) -> tuple[Any, ...]:
    assert typing.get_origin(kind) is tuple
    assert all(issubclass(each, item) for each in typing.get_args(kind))
    return typing.get_args(kind)


def engine(
    identity: str, inputs: Sequence[tuple[Sequence[int], str]], attributes: Mapping[str, Any]
) -> tuple[list[TensorDesc], tuple[str, str, KernelLaunchParams, SymIntExprs]]:
    """What building an engine asks of a plugin: types, shapes, then the kernel. A size of -1 is open."""
    made = REGISTRY[identity]
    assert set(attributes) == set(made.attributes)
    given = {name: attributes[name] for name in made.attributes}
    for name, kind in made.attributes.items():
        assert isinstance(given[name], kind if kind in BUILTIN else np.ndarray), name

    def described(sizes: Callable[[int], Any]) -> list[TensorDesc]:
        return [
            TensorDesc(ShapeExprs([ShapeExpr(sizes(size)) for size in shape]), kind).fixed()
            for shape, kind in inputs
        ]

    unknown = ShapeExpr(0)
    unknown.value = None
    types_only = made.describe(*described(lambda size: unknown), **given)
    assert isinstance(types_only, tuple)
    assert len(types_only) == made.outputs
    symbolic = described(lambda size: unknown if size < 0 else size)
    outputs = list(made.describe(*symbolic, **given))
    assert [output.dtype for output in outputs] == [output.dtype for output in types_only]
    for tensor, (shape, _) in zip(symbolic, inputs, strict=True):
        tensor.fixed(shape)
    assert made.build is not None
    found = made.build(*symbolic, *given.values(), outputs, 0)
    kinds = (str, str, KernelLaunchParams, SymIntExprs)
    assert all(isinstance(item, kind) for item, kind in zip(found, kinds, strict=True))
    return outputs, found


def module(version: str = "10.9.0.34") -> tuple[types.ModuleType, types.ModuleType]:
    """Return `tensorrt` and `tensorrt.plugin`, with nothing registered."""
    REGISTRY.clear()
    tensorrt, plugin = types.ModuleType("tensorrt"), types.ModuleType("tensorrt.plugin")
    for name in ("float32", "float16", "bfloat16", "int64", "int32"):
        setattr(tensorrt, name, globals()[name])
    for item in (
        TensorDesc,
        ShapeExprs,
        ShapeExpr,
        SymInt32,
        SymIntExprs,
        KernelLaunchParams,
        register,
        aot_impl,
    ):
        setattr(plugin, item.__name__, item)
    tensorrt.__dict__.update(__version__=version, plugin=plugin)
    return tensorrt, plugin
