"""The tensors of one layer, given by name: their shapes, and the taps of a method computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Ops, Site, Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.ops.contract import Array

SHAPES: Mapping[str, tuple[str, ...]] = {
    "x": ("B", "N", "C"),
    "normed": ("B", "N", "C"),
    "keys": ("B", "H", "N", "D"),
    "queries": ("B", "H", "N", "D"),
    "values": ("B", "H", "N", "D"),
    "attn": ("B", "H", "N", "N"),
    "cls_attn": ("B", "H", "N"),
    "size": ("B", "N", "1"),
    "text": ("B", "T", "E"),
    "text_mask": ("B", "T"),
    "quotas": ("B", "G"),
    "importance": ("B", "N"),
    "pixels": ("B", "3", "h", "w"),
    "stream": ("B", "N", "V"),
    "text_attn": ("B", "H", "T", "N"),
    "last_attn": ("B", "H", "N"),
    "neurons": ("B", "N", "F"),
    "text_neurons": ("B", "T", "F"),
    "segments": ("B", "N"),
    "update": ("B", "U", "h", "w"),
}
"""The tensors a method may be given, by name, and `grid`, a pair (h, w). Some may have an axis less, see SHORTER; stream is x
unless given, and last_attn the last row of text_attn.

Those of another layer have its role in front, as in early_attn.
"""
CACHE: Mapping[str, tuple[str, ...]] = {
    "keys": ("B", "H", "N", "D"),
    "values": ("B", "H", "N", "D"),
    "queries": ("B", "A", "Q", "D"),
    "attn": ("B", "A", "Q", "N"),
    "noise": ("B", "A", "Q", "N"),
    "temperature": ("B", "1"),
    "hidden": ("B", "N", "C"),
}
"""The tensors a method may be given that chooses entries of a cache; the Q tokens that ask are the last of the N."""

BY_HEAD = ("cls_attn", "last_attn")
"""Those that may be averaged over heads already."""

SHORTER: Mapping[str, tuple[str, ...]] = {**dict.fromkeys(BY_HEAD, ("B", "N")), "update": ("B", "N", "U")}
"""Other shapes that some may have, of an axis less."""

COUNTED = ("quotas", "segments")
"""Those that hold whole numbers."""

EVERYWHERE = ("x", "size", "text", "text_mask")
"""Those that every layer has, unless it is given its own."""

END = 2**31 - 1
"""Behind the end of every axis."""

Projector = Callable[[Ops, Value], Value]
"""Carries tokens [B,N,C] to an output [B,N,E], by operators."""


@dataclass(frozen=True)
class TensorTaps:
    """The taps of a method, computed by `op` from tensors that are given by name."""

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = SHAPES

    op: Ops
    tensors: Mapping[str, Value]
    site: Site
    given: Mapping[str, Value] = field(default_factory=dict)
    role: str = ""
    projector: Projector | None = None

    @property
    def tokens(self) -> Value:
        return self.tensors["x"]

    @property
    def size(self) -> Value | None:
        return self.tensors.get("size")

    @property
    def padded(self) -> bool:
        return self.size is not None

    @property
    def state(self) -> Mapping[str, Value]:
        return self.given

    def layer(self, role: str, block: int) -> TensorTaps:
        del block
        named = f"{role}_"
        own = {
            name.removeprefix(named): item for name, item in self.tensors.items() if name.startswith(named)
        }
        kept = {name: item for name, item in self.tensors.items() if name in EVERYWHERE}
        return replace(self, tensors=kept | own, role=named)

    def text(self) -> Value:
        return self._tensor("text")

    def text_mask(self) -> Value | None:
        return self.tensors.get("text_mask")

    def quotas(self) -> Value:
        return self._tensor("quotas")

    def importance(self) -> Value:
        return self._tensor("importance")

    def pixels(self) -> Value:
        return self._tensor("pixels")

    def segments(self) -> Value:
        return self._tensor("segments")

    def update(self) -> Value:
        return self._tensor("update")

    def neurons(self) -> Value:
        return self._tensor("neurons")

    def text_neurons(self) -> Value:
        return self._tensor("text_neurons")

    def text_keys(self) -> Value:
        return self.op("Unsqueeze", self.text(), np.array([1]))

    def text_attention(self) -> Value:
        return self._tensor("text_attn")

    def projected(self, tokens: Value) -> Value:
        if self.projector is None:
            raise MethodError(
                "the method carries tokens through the projector: pass it as projector, a function of an object that runs "
                "operators (op) and of tokens [B,N,C] that returns [B,N,E]"
            )
        return self.projector(self.op, tokens)

    def stream(self) -> Value:
        return self.op("Cast", self.tensors.get("stream", self.tokens), to=steps.FLOAT)

    def normed(self) -> Value:
        return self._tensor("normed")

    def queries(self) -> Value:
        return self._tensor("queries")

    def keys(self) -> Value:
        return self._tensor("keys")

    def values(self) -> Value:
        return self._tensor("values")

    def attention(self) -> Value:
        if "attn" in self.tensors:
            return self.tensors["attn"]
        if not {"queries", "keys"} <= self.tensors.keys():
            raise self._missing("the attention", "attn, or queries and keys")
        scaled = self.op("Mul", self.queries(), self.site.width**-0.5)
        logits = self.op("MatMul", scaled, self.op("Transpose", self.keys(), perm=[0, 1, 3, 2]))
        if self.size is not None:
            row = self.op("Transpose", self.op("Log", self.size), perm=[0, 2, 1])
            logits = self.op("Add", logits, self.op("Unsqueeze", row, np.array([1])))
        return self.op("Softmax", logits, axis=-1)

    def _tensor(self, name: str) -> Value:
        if name not in self.tensors:
            raise self._missing("the method", name)
        return self.tensors[name]

    def metric(self) -> Value:
        if "keys" not in self.tensors:
            raise self._missing("the metric", "keys")
        return steps.head_mean(self.op, self.tensors["keys"], self.site.heads, self.site.width)

    def class_attention(self) -> Value:
        return self._row("class attention", "cls_attn", 0)

    def last_attention(self) -> Value:
        if "last_attn" not in self.tensors and "text_attn" in self.tensors:
            return self._mean(
                steps.cut(self.op, self.tensors["text_attn"], -1, END, 2), [1, 2], self.site.heads
            )
        return self._row("attention of the last token", "last_attn", self.site.tokens - 1)

    def _row(self, what: str, name: str, row: int) -> Value:
        """[B,N] attention of the token in a row, averaged over heads; name: a tensor that holds it."""
        if name in self.tensors:
            return self._mean(self.tensors[name], [1], self.site.heads)
        if "attn" in self.tensors:
            own = self.op("Slice", self.tensors["attn"], np.array([row]), np.array([row + 1]), np.array([2]))
            return self._mean(own, [1, 2], self.site.heads)
        return self._score(what, f"{name}, attn, or queries and keys", row, row + 1)

    def received_attention(self) -> Value:
        if "attn" in self.tensors:
            return self._mean(self.tensors["attn"], [1, 2], self.site.heads * self.site.tokens)
        return self._score("attention received", "attn, or queries and keys", 0, self.site.tokens)

    def _score(self, what: str, tensors: str, first: int, end: int) -> Value:
        if not {"queries", "keys"} <= self.tensors.keys():
            raise self._missing(what, tensors)
        bias = self.op.constant(np.zeros((1, 1, 1, 1), np.float32))
        if self.size is not None:
            row = self.op("Transpose", self.op("Log", self.size), perm=[0, 2, 1])
            bias = self.op("Unsqueeze", row, np.array([1]))
        scale = self.site.width**-0.5
        queries, keys = self.tensors["queries"], self.tensors["keys"]
        return self.op("TokenScore", queries, keys, bias, scale=scale, first_row=first, end_row=end)

    def _missing(self, what: str, names: str) -> MethodError:
        named = ", ".join(
            f"{self.role}{name} [{','.join(dims)}]"
            for name, dims in self.shapes.items()
            if name in names.replace(",", "").split()
        )
        given = ", ".join(self.role + name if name != "x" else name for name in self.tensors)
        return MethodError(f"{what} needs the tensor {names}, with shapes {named}; given: {given}")

    def _mean(self, data: Value, axes: list[int], count: int) -> Value:
        total = self.op("ReduceSum", data, np.array(axes), keepdims=0)
        return total if count == 1 else self.op("Mul", total, 1.0 / count)


def checked(
    tensors: Mapping[str, Any],
    roles: Sequence[str] = (),
    shapes: Mapping[str, tuple[str, ...]] = SHAPES,
    first: str = "x",
) -> tuple[dict[str, Array], dict[str, int]]:
    """Return the tensors as arrays and the size of every axis letter.

    roles: those in which a method reads other layers, whose tensors have them in front. shapes: the names there are; first: the
    one that no method does without. Raises: MethodError.
    """
    arrays: dict[str, Array] = {}
    dims: dict[str, int] = {}
    origin: dict[str, str] = {}
    for name, item in tensors.items():
        if name == "grid" and shapes is SHAPES:
            continue
        kind = _kind(name, roles, shapes)
        array = np.asarray(item)
        other = SHORTER.get(kind, ())
        letters = other if array.ndim == len(other) else shapes[kind]
        shape = f"{name} [{','.join(letters)}]"
        if kind in COUNTED and array.dtype.kind not in "iu":
            raise MethodError(f"tensor {shape} must hold whole numbers, got {array.dtype}")
        if kind not in COUNTED and array.dtype.kind != "f":
            raise MethodError(f"tensor {shape} must hold floating-point numbers, got {array.dtype}")
        if array.ndim != len(letters):
            raise MethodError(f"tensor {shape} needs {len(letters)} axes, got shape {list(array.shape)}")
        for letter, size in zip(letters, array.shape, strict=True):
            if size == 0 or (letter.isdigit() and size != int(letter)):
                raise MethodError(f"tensor {shape}: got shape {list(array.shape)}")
            if letter in dims and dims[letter] != size:
                raise MethodError(
                    f"tensor {shape} has {letter}={size} in its shape {list(array.shape)}, "
                    f"but {origin[letter]} has {letter}={dims[letter]}"
                )
            if not letter.isdigit():
                origin.setdefault(letter, name)
                dims.setdefault(letter, size)
        arrays[name] = array[:, None] if kind in BY_HEAD and letters is other else array
    if first not in arrays:
        what = "tokens are" if first == "x" else "entries of the cache are"
        raise MethodError(
            f"the {what} missing: tensor {first} [{','.join(shapes[first])}]; given: {', '.join(tensors) or 'none'}"
        )
    return arrays, dims


def _kind(name: str, roles: Sequence[str], shapes: Mapping[str, tuple[str, ...]]) -> str:
    """The name in `shapes` of a tensor that may have a role in front. Raises: MethodError."""
    kind = next((name.removeprefix(f"{role}_") for role in roles if name.startswith(f"{role}_")), name)
    if kind not in shapes:
        more = f"; a layer's have {', '.join(f'{role}_' for role in roles)} in front" if roles else ""
        known = [*shapes, *(["grid"] if shapes is SHAPES else [])]
        raise MethodError(f"no tensor is called {name!r}; names: {', '.join(known)}{more}")
    return kind


def layout(tensors: Mapping[str, Any], site: Site) -> tuple[int, ...] | None:
    """Return the grid among the tensors, None where there is none. Raises: MethodError where it has other cells than tokens."""
    if "grid" not in tensors:
        return None
    grid = tuple(int(length) for length in np.ravel(tensors["grid"]))
    if len(grid) not in (2, 3) or math.prod(grid) != site.tokens - site.protect:
        raise MethodError(
            f"grid {grid} must be (h, w) or (frames, h, w) with as many cells as there are unprotected tokens, "
            f"{site.tokens - site.protect}"
        )
    return grid
