"""A plugin as TensorRT sees it, driven from Python through driver.cpp."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.plugins.helpers import built
from tokenrt.plugins.host import kernels

FLOAT, HALF, INT8, INT32, BFLOAT16, INT64 = 0, 1, 2, 3, 7, 8
"""Numbers of nvinfer1::DataType."""

TYPES = {"float32": FLOAT, "float16": HALF, "bfloat16": BFLOAT16, "int64": INT64, "int32": INT32}
FIELD_TYPES = {"float16": 0, "float32": 1, "float64": 2, "int8": 3, "int32": 5, "int64": 10}
LINEAR, CHW4 = 0, 1
BUILD, RUNTIME = 0, 1


@functools.cache
def calls() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(built.driver()))
    for name in ("open", "create", "again", "clone", "attach"):
        getattr(loaded, f"driver_{name}").restype = ctypes.c_void_p
    for name in ("told", "fields", "text"):
        getattr(loaded, f"driver_{name}").restype = ctypes.c_char_p
    loaded.driver_workspace.restype = ctypes.c_size_t
    return loaded


@functools.cache
def opened(path: Path) -> int:
    handle = calls().driver_open(str(path).encode())
    assert handle, told()
    return int(handle)


def told() -> str:
    """The last message to TensorRT's logger, forgotten with this."""
    text = str(calls().driver_told().decode())
    calls().driver_forget()
    return text


def _ints(values: Sequence[int], kind: Any = ctypes.c_int) -> Any:
    return (kind * max(1, len(values)))(*values)


class Node:
    """A live plugin. Every call returns what TensorRT would get."""

    def __init__(self, handle: int, library: int) -> None:
        self._handle, self._library = ctypes.c_void_p(handle), ctypes.c_void_p(library)

    @classmethod
    def create(cls, library: Path, name: str, fields: Mapping[str, Any], phase: int = BUILD) -> Node | None:
        """Make one as a creator does; None where it refuses."""
        items = list(fields.items())
        return cls.listed(library, name, items, phase)

    @classmethod
    def listed(
        cls, library: Path, name: str, items: Sequence[tuple[str, Any]], phase: int = BUILD
    ) -> Node | None:
        handle = opened(library)
        arrays = [
            np.atleast_1d(np.asarray(value, getattr(value, "dtype", _kind(value)))) for _, value in items
        ]
        count = len(items)
        names = (ctypes.c_char_p * max(1, count))(*(key.encode() for key, _ in items))
        data = (ctypes.c_void_p * max(1, count))(
            *(array.ctypes.data if array.size else None for array in arrays)
        )
        types = _ints([FIELD_TYPES[array.dtype.name] for array in arrays])
        lengths = _ints([array.size for array in arrays])
        found = calls().driver_create(
            ctypes.c_void_p(handle), name.encode(), count, names, types, data, lengths, phase
        )
        return cls(found, handle) if found else None

    def _other(self, name: str, *before: Any) -> Node | None:
        found = getattr(calls(), f"driver_{name}")(*before, self._handle)
        return Node(found, self._library.value or 0) if found else None

    def again(self) -> Node | None:
        return self._other("again", self._library)

    def clone(self) -> Node | None:
        return self._other("clone")

    def attached(self) -> Node | None:
        return self._other("attach")

    def close(self) -> None:
        calls().driver_destroy(self._handle)

    @property
    def fields(self) -> str:
        return str(calls().driver_fields(self._handle).decode())

    @property
    def texts(self) -> list[str]:
        """Name, version, namespace, timing cache id, metadata."""
        return [calls().driver_text(self._handle, i).decode() for i in range(5)]

    @property
    def outputs(self) -> int:
        return int(calls().driver_outputs(self._handle))

    def types(self, given: Sequence[int]) -> list[int] | None:
        found = _ints([-1] * self.outputs)
        failed = calls().driver_types(self._handle, len(given), _ints(given), self.outputs, found)
        return None if failed else list(found)

    def shapes(self, shapes: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """Output shapes; an axis -1 is dynamic, and -1 - i stands for the i-th axis given."""
        ranks, found = _ints([0] * self.outputs), _ints([0] * 64, ctypes.c_int64)
        failed = calls().driver_shapes(self._handle, *_described(shapes), self.outputs, ranks, found)
        if failed:
            return None
        numbers = iter(found)
        return [[next(numbers) for _ in range(rank)] for rank in ranks]

    def supports(self, types: Sequence[int], formats: Sequence[int] | None = None) -> bool:
        given = len(types) - self.outputs
        layout = _ints(formats or [LINEAR] * len(types))
        return bool(calls().driver_supports(self._handle, given, self.outputs, _ints(types), layout))

    def _asked(self, name: str, shapes: Sequence[Sequence[int]], types: Sequence[int]) -> int:
        call = getattr(calls(), f"driver_{name}")
        return int(call(self._handle, *_described(shapes), _ints(types), self.outputs))

    def configure(self, shapes: Sequence[Sequence[int]], types: Sequence[int]) -> bool:
        return self._asked("configure", shapes, types) == 0

    def shape_change(self, shapes: Sequence[Sequence[int]], types: Sequence[int]) -> bool:
        return self._asked("shape_change", shapes, types) == 0

    def workspace(self, shapes: Sequence[Sequence[int]], types: Sequence[int]) -> int:
        return self._asked("workspace", shapes, types)

    def _profile(self, sizes: Sequence[Sequence[Sequence[int]]], types: Sequence[int]) -> tuple[bool, int]:
        count, ranks, _ = _described(sizes[0])
        axes = [size for shapes in sizes for shape in shapes for size in shape]
        space = ctypes.c_size_t()
        failed = calls().driver_profile(
            self._handle, count, ranks, _ints(axes, ctypes.c_int64), _ints(types), self.outputs, ctypes.byref(space)
        )  # fmt: skip
        return not failed, space.value

    def profile(self, sizes: Sequence[Sequence[Sequence[int]]], types: Sequence[int]) -> bool:
        """Configure for a profile; sizes: the shapes as described (-1: open), the least, the usual, the largest."""
        return self._profile(sizes, types)[0]

    def profile_workspace(self, sizes: Sequence[Sequence[Sequence[int]]], types: Sequence[int]) -> int:
        return self._profile(sizes, types)[1]

    def run(
        self, inputs: Sequence[Any], kinds: Sequence[Any], *, shift: int = 0, space: int | None = None
    ) -> list[Any] | None:
        """Enqueue on host memory with exactly the workspace asked for, or `space` bytes; `shift` misaligns the first input."""
        given = [kernels.ready(item) for item in inputs]
        if shift:
            moved = kernels.aligned((given[0].nbytes + shift,), np.uint8)[shift:].view(given[0].dtype)
            given[0] = moved[: given[0].size].reshape(given[0].shape)
        types, shapes = [TYPES[item.dtype.name] for item in given], [item.shape for item in given]
        found = self.shapes(shapes)
        if found is None:
            return None
        made = [kernels.unwritten(shape, kind) for shape, kind in zip(found, kinds, strict=True)]
        bytes_asked = self.workspace(shapes, types) if space is None else space
        workspace = kernels.unwritten((bytes_asked,), np.uint8)
        failed = calls().driver_enqueue(
            self._handle, *_described(shapes), _ints(types), self.outputs, _pointers(given), _pointers(made),
            ctypes.c_void_p(workspace.ctypes.data if workspace.size else None),
        )  # fmt: skip
        return None if failed else made


def together(
    first: Node, second: Node, inputs: Sequence[Any], kinds: Sequence[Any], rounds: int
) -> list[list[Any]]:
    """What two contexts of one operator give that run at once, each on a thread of its own."""
    given = [kernels.ready(item) for item in inputs]
    types, shapes = [TYPES[item.dtype.name] for item in given], [item.shape for item in given]
    found = first.shapes(shapes)
    assert found is not None, told()
    made = [
        [kernels.unwritten(shape, kind) for shape, kind in zip(found, kinds, strict=True)] for _ in range(2)
    ]
    spaces = [kernels.unwritten((first.workspace(shapes, types) + 16,), np.uint8) for _ in range(2)]
    pointers = [_pointers(outputs) for outputs in made]
    failed = calls().driver_threads(
        first._library, (ctypes.c_void_p * 2)(first._handle, second._handle), *_described(shapes), _ints(types),
        first.outputs, _pointers(given), (ctypes.c_void_p * 2)(*map(ctypes.addressof, pointers)), _pointers(spaces), rounds,
    )  # fmt: skip
    assert not failed, told()
    return made


def _kind(value: Any) -> Any:
    return np.float32 if isinstance(value, float) else np.int32


def _described(shapes: Sequence[Sequence[int]]) -> tuple[int, Any, Any]:
    axes = [size for shape in shapes for size in shape]
    return len(shapes), _ints([len(shape) for shape in shapes]), _ints(axes, ctypes.c_int64)


def _pointers(arrays: Sequence[Any]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
