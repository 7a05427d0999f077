"""Run one reduction method on bare arrays: `tokenrt.apply_method`."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.ops import numpy_backend
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
    "text": ("B", "T", "C"),
    "stream": ("B", "N", "E"),
}
"""The tensors a method may be given, by name, and `grid`, a pair (h, w). cls_attn may also be [B,N]; stream is x unless given."""

BACKENDS = ("numpy", "onnxruntime")
OPSET = 18


def apply_method(
    name: str,
    tensors: Mapping[str, Any],
    *,
    keep: int,
    backend: str | Ops = "numpy",
    protect: int = 1,
    class_token: bool | None = None,
    restore: bool = False,
    block: int = 0,
    blocks: int = 12,
    state: Mapping[str, Any] | None = None,
    multiple_of: int = 1,
    **params: Any,
) -> dict[str, Array]:
    """Reduce the tokens of one layer, given as arrays; `tokenrt.apply_method` says what each argument is.

    backend: one of BACKENDS, or an object that runs operators on arrays. Raises: MethodError, PlanError.
    """
    method = methods.get(name).from_options(params)
    if isinstance(backend, str) and backend not in BACKENDS:
        raise unknown_backend(backend, BACKENDS)
    arrays, dims = _checked(tensors)
    site = _in_multiples(method, _site(method, dims, keep, protect, class_token), multiple_of)
    site = replace(site, block=block, blocks=blocks, grid=_grid(tensors, site))
    if site.keep == site.tokens:
        return _unchanged(arrays, restore)
    carried = {name: np.asarray(value) for name, value in (state or {}).items()}
    if backend == "onnxruntime":
        result = _on_onnxruntime(method, arrays, carried, site, restore)
    else:
        result = _on_arrays(
            numpy_backend.NumpyOps() if isinstance(backend, str) else backend,
            method,
            arrays,
            carried,
            site,
            restore,
        )
    return _named(method, arrays, result, site)


def _in_multiples(method: Method, site: Site, multiple_of: int) -> Site:
    """The site with K the nearest multiple that the method can leave; K = N stays."""
    if _whole("multiple_of", multiple_of) < 1:
        raise PlanError(f"multiple_of={multiple_of}: expected a whole number of tokens, 1 or more")
    if site.keep == site.tokens or multiple_of == 1:
        return site
    keep = method.nearest(site.keep, site.tokens, site.protect, multiple_of)
    if keep is None:
        raise PlanError(
            f"keep={site.keep}: method {method.name!r} can leave no multiple of {multiple_of} of {site.tokens} tokens, "
            f"{method.fewest(site.tokens, site.protect)} at the least"
        )
    return replace(site, keep=keep)


def unknown_backend(name: str, known: Sequence[str]) -> MethodError:
    """The error for a backend that is none of those known."""
    return MethodError(f"no backend is called {name!r}; backends: {', '.join(known)}")


def _grid(tensors: Mapping[str, Any], site: Site) -> tuple[int, ...] | None:
    if "grid" not in tensors:
        return None
    grid = tuple(int(length) for length in np.ravel(tensors["grid"]))
    if len(grid) not in (2, 3) or math.prod(grid) != site.tokens - site.protect:
        raise MethodError(
            f"grid {grid} must be (h, w) or (frames, h, w) with as many cells as there are unprotected tokens, "
            f"{site.tokens - site.protect}"
        )
    return grid


@dataclass(frozen=True)
class TensorTaps:
    """The taps of a method, computed by `op` from tensors that are given by name."""

    op: Ops
    tensors: Mapping[str, Value]
    site: Site
    given: Mapping[str, Value] = field(default_factory=dict)

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
            raise _missing("the attention", "attn, or queries and keys", self.tensors)
        scaled = self.op("Mul", self.queries(), self.site.width**-0.5)
        logits = self.op("MatMul", scaled, self.op("Transpose", self.keys(), perm=[0, 1, 3, 2]))
        if self.size is not None:
            row = self.op("Transpose", self.op("Log", self.size), perm=[0, 2, 1])
            logits = self.op("Add", logits, self.op("Unsqueeze", row, np.array([1])))
        return self.op("Softmax", logits, axis=-1)

    def _tensor(self, name: str) -> Value:
        if name not in self.tensors:
            raise _missing("the method", name, self.tensors)
        return self.tensors[name]

    def metric(self) -> Value:
        if "keys" not in self.tensors:
            raise _missing("the metric", "keys", self.tensors)
        return steps.head_mean(self.op, self.tensors["keys"], self.site.heads, self.site.width)

    def class_attention(self) -> Value:
        if "cls_attn" in self.tensors:
            return self._mean(self.tensors["cls_attn"], [1], self.site.heads)
        if "attn" in self.tensors:
            row = self.op("Slice", self.tensors["attn"], np.array([0]), np.array([1]), np.array([2]))
            return self._mean(row, [1, 2], self.site.heads)
        return self._score("class attention", "cls_attn, attn, or queries and keys", 1)

    def received_attention(self) -> Value:
        if "attn" in self.tensors:
            return self._mean(self.tensors["attn"], [1, 2], self.site.heads * self.site.tokens)
        return self._score("attention received", "attn, or queries and keys", self.site.tokens)

    def _score(self, what: str, tensors: str, rows: int) -> Value:
        if not {"queries", "keys"} <= self.tensors.keys():
            raise _missing(what, tensors, self.tensors)
        bias = self.op.constant(np.zeros((1, 1, 1, 1), np.float32))
        if self.size is not None:
            row = self.op("Transpose", self.op("Log", self.size), perm=[0, 2, 1])
            bias = self.op("Unsqueeze", row, np.array([1]))
        scale = self.site.width**-0.5
        queries, keys = self.tensors["queries"], self.tensors["keys"]
        return self.op("TokenScore", queries, keys, bias, scale=scale, first_row=0, end_row=rows)

    def _mean(self, data: Value, axes: list[int], count: int) -> Value:
        total = self.op("ReduceSum", data, np.array(axes), keepdims=0)
        return total if count == 1 else self.op("Mul", total, 1.0 / count)


def _missing(what: str, names: str, given: Mapping[str, Any]) -> MethodError:
    named = ", ".join(
        f"{name} [{','.join(dims)}]"
        for name, dims in SHAPES.items()
        if name in names.replace(",", "").split()
    )
    return MethodError(f"{what} needs the tensor {names}, with shapes {named}; given: {', '.join(given)}")


def restored(op: Ops, tokens: Value, reduction: Reduction, site: Site) -> Value:
    """Return all N tokens: a position gets the token it is part of, a dropped one its own of `tokens`."""
    if reduction.affinity is not None:
        spread = op("MatMul", reduction.affinity, op("Cast", reduction.tokens, to=steps.FLOAT))
        return op("CastLike", spread, tokens)
    own = np.arange(site.tokens)[None] + site.keep
    lost = op("Less", reduction.assign, np.array(0))
    source = op("Where", lost, own, reduction.assign)
    every = op("Expand", source, steps.batch_shape(op, tokens, site.tokens))
    return op("TokenRestore", op("Concat", reduction.tokens, tokens, axis=1), every)


def _checked(tensors: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, int]]:
    """Return the tensors as arrays and the size of every axis letter. Raises: MethodError."""
    known = ", ".join([*SHAPES, "grid"])
    arrays: dict[str, Array] = {}
    dims: dict[str, int] = {}
    origin: dict[str, str] = {}
    for name, item in tensors.items():
        if name == "grid":
            continue
        if name not in SHAPES:
            raise MethodError(f"no tensor is called {name!r}; names: {known}")
        array = np.asarray(item)
        letters = ("B", "N") if name == "cls_attn" and array.ndim == 2 else SHAPES[name]
        shape = f"{name} [{','.join(letters)}]"
        if array.dtype.kind != "f":
            raise MethodError(f"tensor {shape} must hold floating-point numbers, got {array.dtype}")
        if array.ndim != len(letters):
            raise MethodError(f"tensor {shape} needs {len(letters)} axes, got shape {list(array.shape)}")
        for letter, size in zip(letters, array.shape, strict=True):
            if size == 0 or (letter == "1" and size != 1):
                raise MethodError(f"tensor {shape}: got shape {list(array.shape)}")
            if letter in dims and dims[letter] != size:
                raise MethodError(
                    f"tensor {shape} has {letter}={size} in its shape {list(array.shape)}, "
                    f"but {origin[letter]} has {letter}={dims[letter]}"
                )
            if letter != "1":
                origin.setdefault(letter, name)
                dims.setdefault(letter, size)
        arrays[name] = array[:, None] if array.ndim != len(SHAPES[name]) else array
    if "x" not in arrays:
        raise MethodError(f"the tokens are missing: tensor x [B,N,C]; given: {', '.join(tensors) or 'none'}")
    return arrays, dims


def _site(method: Method, dims: Mapping[str, int], keep: int, protect: int, class_token: bool | None) -> Site:
    tokens = dims["N"]
    kept, first = _whole("keep", keep), _whole("protect", protect)
    if first < 0 or first >= tokens:
        raise PlanError(f"protect={first}: expected 0 to {tokens - 1} of the {tokens} tokens")
    if kept > tokens:
        raise PlanError(f"keep={kept} is more than the {tokens} tokens there are")
    if kept <= first:
        raise PlanError(
            f"keep={kept} leaves nothing beside the {first} protected tokens; keep at least {first + 1}"
        )
    fewest = method.fewest(tokens, first)
    if kept < fewest:
        raise PlanError(
            f"method {method.name!r} leaves at least {fewest} of {tokens} tokens ({first} protected) in one "
            f"step, got keep={kept}"
        )
    has_class = first > 0 if class_token is None else class_token
    heads, width, channels = dims.get("H", 1), dims.get("D", 1), dims["C"]
    return Site(tokens, kept, first, heads, width, class_token=has_class, channels=channels)


def _whole(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise PlanError(f"{name}={value!r}: expected a whole number of tokens")


def _unchanged(arrays: Mapping[str, Array], restore: bool) -> dict[str, Array]:
    x = arrays["x"]
    every = np.tile(np.arange(x.shape[1]), (len(x), 1))
    result = {
        "tokens": x.copy(),
        "size": np.array(arrays.get("size", np.ones((*x.shape[:2], 1), np.float32))),
        "index": every,
        "assign": every.copy(),
    }
    return result | ({"restored": x.copy()} if restore else {})


def _on_arrays(
    op: Ops,
    method: Method,
    arrays: Mapping[str, Array],
    state: Mapping[str, Array],
    site: Site,
    restore: bool,
) -> dict[str, Array | None]:
    own, carried = ({name: op.constant(array) for name, array in given.items()} for given in (arrays, state))
    return _outputs(op, method, TensorTaps(op, own, site, carried), site, restore)


def _outputs(op: Ops, method: Method, taps: TensorTaps, site: Site, restore: bool) -> dict[str, Value | None]:
    reduction = method.reduce(op, taps, site)
    return {
        "tokens": reduction.tokens,
        "size": reduction.size,
        "position": reduction.position,
        "assign": reduction.assign,
        "restored": restored(op, taps.tokens, reduction, site) if restore else None,
        "affinity": reduction.affinity if restore else None,
        **{f"state_{name}": value for name, value in reduction.state.items()},
    }


def _on_onnxruntime(
    method: Method, arrays: Mapping[str, Array], state: Mapping[str, Array], site: Site, restore: bool
) -> dict[str, Array | None]:
    import onnx_ir as ir
    import onnxruntime

    from tokenrt.passes.ops.graph_backend import GraphOps

    feeds = {
        name: array if name == "x" and array.dtype == np.float16 else _narrow(array)
        for name, array in (*arrays.items(), *((f"state_{key}", value) for key, value in state.items()))
    }
    inputs = [
        ir.Value(
            name=name,
            shape=ir.Shape(["B", *array.shape[1:]]),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        for name, array in feeds.items()
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET}, name=method.name)
    op = GraphOps(graph, None, OPSET, prefix=f"tokenrt_{method.name}")
    values = {value.name or "": value for value in inputs}
    carried = {name: values[f"state_{name}"] for name in state}
    results = _outputs(op, method, TensorTaps(op, values, site, carried), site, restore)
    wanted = {key: value for key, value in results.items() if value is not None}
    for value in wanted.values():
        graph.outputs.append(op("Identity", value))
    model = ir.Model(graph, ir_version=10)
    op.add_functions(model)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    used = {item.name for item in session.get_inputs()}
    found = session.run(None, {name: array for name, array in feeds.items() if name in used})
    return dict.fromkeys(results) | dict(zip(wanted, found, strict=True))


def _narrow(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _named(
    method: Method, arrays: Mapping[str, Array], result: Mapping[str, Array | None], site: Site
) -> dict[str, Array]:
    x, size, assign, position = arrays["x"], result["size"], result["assign"], result["position"]
    if assign is None or position is None or result["tokens"] is None:
        raise MethodError(f"method {method.name!r} returned no tokens, positions or map")
    batch = len(x)
    if size is None:
        size = np.ones((batch, site.keep, 1))
    kept = int(assign.max()) + 1 if method.drops else site.keep
    named = {
        "tokens": result["tokens"].astype(x.dtype),
        "size": size.astype(arrays.get("size", np.ones(1, "f")).dtype),
        "index": np.broadcast_to(position[:, :kept], (batch, kept)).astype(np.int64),
        "assign": np.broadcast_to(assign, (batch, site.tokens)).astype(np.int64),
    }
    if result["restored"] is not None:
        named["restored"] = result["restored"].astype(x.dtype)
    if result["affinity"] is not None:
        named["affinity"] = result["affinity"]
    named.update(
        {name: value for name, value in result.items() if name.startswith("state_") and value is not None}
    )
    return named
