"""Open the fused nodes of ONNX Runtime's transformer optimizer (domain com.microsoft) into standard operators.

The runtime fuses them again where it can; opened, they can be analysed, and TensorRT accepts them. Source:
ContribOperators.md of ONNX Runtime 1.31.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.graph.model import opset, substitute
from tokenrt.passes.ops.graph_backend import GraphOps

Opened = tuple[ir.Value | None, ...]


def open_fused(model: ir.Model) -> None:
    """Replace every fused node in place. Raises: UnsupportedError naming a node with a cache or an unusual mask."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) in OPENERS]
    if not nodes:
        return
    if opset(model) < 17:
        raise UnsupportedError(
            f"{nodes[0].op_type} node {nodes[0].name!r} needs opset 17 or later to be opened; export again with --opset 17"
        )
    types = _types(model)
    op = GraphOps(model.graph, None, opset(model), "opened")
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.dtype is None:
                value.type = ir.TensorType(types.get(str(value.name), ir.DataType.FLOAT))
        op.before = node
        results = OPENERS[node.domain, node.op_type](op, node)
        for old, new in zip(node.outputs, results, strict=False):
            if new is None or not (old.uses() or old.is_graph_output()):
                continue
            new.shape = old.shape or new.shape
            substitute(model.graph, old, new)
        model.graph.remove(node, safe=True)


def _types(model: ir.Model) -> Mapping[str, ir.DataType]:
    """Element types: a fused node computes in the type of its floating-point weights."""
    floats = [
        v.dtype
        for v in model.graph.initializers.values()
        if v.dtype in (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BFLOAT16)
    ]
    common = max(set(floats), key=floats.count, default=ir.DataType.FLOAT)
    return {
        str(v.name): common
        for node in model.graph
        for v in node.outputs
        if v.dtype is None and common is not None
    }


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _size(value: ir.Value, axis: int) -> int:
    dims = value.shape.numpy() if value.shape is not None else ()
    return int(dims[axis])


def _refuse(node: ir.Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"{node.domain}.{node.op_type} node {node.name!r}: {what}")


def _scalar(number: float, like: ir.Value) -> Any:
    kind = np.float16 if like.dtype == ir.DataType.FLOAT16 else np.float32
    return np.asarray(number, kind)


def _layer_norm(
    op: GraphOps, node: ir.Node, value: ir.Value, gamma: ir.Value | None, beta: ir.Value | None
) -> ir.Value:
    parts = [part for part in (value, gamma, beta) if part is not None]
    return op("LayerNormalization", *parts, axis=-1, epsilon=float(_attribute(node, "epsilon", 1e-12)))


def _skip_layer_norm(op: GraphOps, node: ir.Node) -> Opened:
    total = _skip(op, node, 4)
    return _layer_norm(op, node, total, _input(node, 2), _input(node, 3)), None, None, total


def _skip_rms_norm(op: GraphOps, node: ir.Node) -> Opened:
    total = _skip(op, node, 3)
    return _rms(op, node, total, node.inputs[2]), None, None, total


def _rms_norm(op: GraphOps, node: ir.Node) -> Opened:
    assert node.inputs[0] is not None
    return (_rms(op, node, node.inputs[0], node.inputs[1]),)


def _rms(op: GraphOps, node: ir.Node, total: ir.Value, gamma: ir.Value | None) -> ir.Value:
    if gamma is None or gamma.shape is None:
        raise _refuse(node, "its scale is missing")
    x = op("Cast", total, to=int(ir.DataType.FLOAT))
    mean = op("Mul", op("ReduceSum", op("Mul", x, x), [-1], keepdims=1), 1.0 / _size(gamma, 0))
    unit = op("Div", x, op("Sqrt", op("Add", mean, float(_attribute(node, "epsilon", 1e-12)))))
    return op("Mul", op("CastLike", unit, total), gamma)


def _skip(op: GraphOps, node: ir.Node, bias: int) -> ir.Value:
    branch, added = node.inputs[0], _input(node, bias)
    if added is not None:
        branch = op("Add", branch, added)
    return op("Add", branch, node.inputs[1])


def _gelu(op: GraphOps, node: ir.Node) -> Opened:
    x = _biased(op, node)
    inner = op("Add", op("Erf", op("Div", x, _scalar(math.sqrt(2), x))), _scalar(1, x))
    return (op("Mul", op("Mul", x, inner), _scalar(0.5, x)),)


def _fast_gelu(op: GraphOps, node: ir.Node) -> Opened:
    x = _biased(op, node)
    cubic = op("Mul", op("Mul", op("Mul", x, x), x), _scalar(0.044715, x))
    inner = op("Tanh", op("Mul", op("Add", x, cubic), _scalar(math.sqrt(2 / math.pi), x)))
    return (op("Mul", op("Mul", x, op("Add", inner, _scalar(1, x))), _scalar(0.5, x)),)


def _quick_gelu(op: GraphOps, node: ir.Node) -> Opened:
    x = node.inputs[0]
    assert x is not None
    return (op("Mul", x, op("Sigmoid", op("Mul", x, _scalar(_attribute(node, "alpha", 1.702), x)))),)


def _biased(op: GraphOps, node: ir.Node) -> Any:
    bias = _input(node, 1)
    return node.inputs[0] if bias is None else op("Add", node.inputs[0], bias)


def _attention(op: GraphOps, node: ir.Node) -> Opened:
    if any(_input(node, index) is not None for index in (4, 6)) or _attribute(node, "unidirectional", 0):
        raise _refuse(node, "a cache or causal attention is not supported")
    weight, bias, heads = node.inputs[1], _input(node, 2), int(_attribute(node, "num_heads", 0))
    if weight is None or weight.shape is None or _attribute(node, "do_rotary", 0):
        raise _refuse(node, "rotary positions or a computed weight are not supported")
    total = _size(weight, 1)
    sizes = [int(size) for size in _attribute(node, "qkv_hidden_sizes", [total // 3] * 3)]
    projected = op("MatMul", node.inputs[0], weight)
    projected = projected if bias is None else op("Add", projected, bias)
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    parts = [
        op("Slice", projected, [start], [start + size], [2])
        for start, size in zip(starts, sizes, strict=True)
    ]
    return (_attend(op, node, parts, sizes, heads, mask=3, bias=5),)


def _multi_head(op: GraphOps, node: ir.Node) -> Opened:
    if any(_input(node, index) is not None for index in range(6, len(node.inputs))):
        raise _refuse(node, "a key-value cache is not supported")
    if any(_input(node, index) is None for index in (1, 2)) or _attribute(node, "unidirectional", 0):
        raise _refuse(node, "packed queries, keys and values or causal attention are not supported")
    bias, heads, parts = _input(node, 3), int(_attribute(node, "num_heads", 0)), [*node.inputs[:3]]
    if bias is not None and bias.shape is not None:
        third = _size(bias, 0) // 3
        parts = [
            op("Add", part, op("Slice", bias, [i * third], [(i + 1) * third], [0]))
            for i, part in enumerate(parts)
        ]
    return (_attend(op, node, parts, [0, 0, 0], heads, mask=4, bias=5),)


def _attend(
    op: GraphOps, node: ir.Node, parts: list[Any], sizes: list[int], heads: int, *, mask: int, bias: int
) -> ir.Value:
    """softmax(scale q k^T + masks) v on [B,N,H*D] parts."""
    split = [op("Transpose", op("Reshape", part, [0, 0, heads, -1]), perm=[0, 2, 1, 3]) for part in parts]
    query, key, value = split
    scores = _scores(op, node, query, key)
    hidden = _input(node, mask)
    if hidden is not None:
        scores = op("Add", scores, _padding(op, node, hidden, scores))
    extra = _input(node, bias)
    if extra is not None:
        scores = op("Add", scores, extra)
    weighted = op("MatMul", op("Softmax", scores, axis=-1), value)
    return op("Reshape", op("Transpose", weighted, perm=[0, 2, 1, 3]), [0, 0, -1])


def _scores(op: GraphOps, node: ir.Node, query: ir.Value, key: ir.Value) -> ir.Value:
    """Scores [B,H,N,N] of parts [B,H,N,D]: products times the scale, 1/sqrt(D) where there is none."""
    scores = op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2]))
    scale = float(_attribute(node, "scale", 0.0))
    if scale:
        return op("Mul", scores, _scalar(scale, scores))
    width = op("Cast", op("Slice", op("Shape", query), [3], [4]), to=int(scores.dtype or ir.DataType.FLOAT))
    return op("Div", scores, op("Sqrt", width))


def _padding(op: GraphOps, node: ir.Node, mask: ir.Value, scores: ir.Value) -> ir.Value:
    """[B,1,1,N] from a 0/1 mask [B,N], or from lengths [B]."""
    if mask.shape is None or len(mask.shape) not in (1, 2):
        raise _refuse(node, "its mask is neither [batch, tokens] nor [batch]")
    kind = int(scores.dtype or ir.DataType.FLOAT)
    if len(mask.shape) == 1:
        length = op("Squeeze", op("Slice", op("Shape", scores), [3], [4]), [0])
        place = op("Unsqueeze", op("Range", np.int64(0), length, np.int64(1)), [0])
        mask = op("Less", place, op("Unsqueeze", op("Cast", mask, to=int(ir.DataType.INT64)), [1]))
    shown = op("Unsqueeze", op("Cast", mask, to=kind), [1, 2])
    fill = max(float(_attribute(node, "mask_filter_value", -10000.0)), -60000.0)
    return op("Mul", op("Sub", _scalar(1, scores), shown), _scalar(fill, scores))


def _embed(op: GraphOps, node: ir.Node) -> Opened:
    ids, segments, words, positions, kinds, gamma, beta, mask, places = (
        _input(node, index) for index in range(9)
    )
    if ids is None or words is None or positions is None:
        raise _refuse(node, "its ids or tables are missing")
    total = op("Gather", words, ids, axis=0)
    if places is None:
        length = op("Squeeze", op("Slice", op("Shape", ids), [1], [2]), [0])
        places = op("Unsqueeze", op("Range", np.int64(0), length, np.int64(1)), [0])
    total = op("Add", total, op("Gather", positions, places, axis=0))
    if segments is not None and kinds is not None:
        total = op("Add", total, op("Gather", kinds, segments, axis=0))
    counted = (
        op("Cast", op("ReduceSum", mask, [1], keepdims=0), to=int(ir.DataType.INT32))
        if mask is not None
        else None
    )
    if counted is not None:
        counted.shape = ir.Shape(("batch",))
    return _layer_norm(op, node, total, gamma, beta), counted, total


def _fused_matmul(op: GraphOps, node: ir.Node) -> Opened:
    ranks = [len(value.shape) for value in node.inputs[:2] if value is not None and value.shape is not None]
    turned = any(_attribute(node, f"transBatch{side}", 0) for side in "AB")
    if turned and (len(set(ranks)) != 1 or ranks[0] < 3):
        told = " and ".join(map(str, ranks)) or "unknown"
        raise _refuse(
            node,
            f"its batch transposes need inputs of one rank, 3 or more, and the ranks are {told}; ONNX Runtime does not "
            "run such a node either, so what fused it made a mistake: use the model as it was before",
        )
    sides = [_turned(op, node, index, side) for index, side in enumerate("AB")]
    product = op("MatMul", *sides)
    alpha = float(_attribute(node, "alpha", 1.0))
    return (product if alpha == 1 else op("Mul", product, _scalar(alpha, product)),)


def _turned(op: GraphOps, node: ir.Node, index: int, side: str) -> ir.Value | None:
    """One side of a FusedMatMul as MatMul wants it: first the rows, if they are axis 0, then the last two axes."""
    value = node.inputs[index]
    flags = [bool(_attribute(node, f"{name}{side}", 0)) for name in ("transBatch", "trans")]
    if value is None or not any(flags):
        return value
    if value.shape is None:
        raise _refuse(node, "the rank of an input is unknown")
    order = list(range(len(value.shape)))
    if flags[0]:
        order.insert(-1, order.pop(0))
    if flags[1]:
        order[-2:] = order[:-3:-1]
    return op("Transpose", value, perm=order)


def _grouped(op: GraphOps, node: ir.Node) -> Opened:
    """Attention of a prompt, causal, with heads of keys that queries share; the cache it leaves is keys, rotated, and values."""
    query, key, value, past, _, lengths, _, cos, sin, places, extra = (_input(node, i) for i in range(11))
    heads, key_heads = (int(_attribute(node, name, 0)) for name in ("num_heads", "kv_num_heads"))
    if past is not None and not (past.shape is not None and len(past.shape) == 4 and past.shape[2] == 0):
        raise _refuse(
            node,
            f"it has a past, {past.name!r}, and only a prompt without one can lose tokens: fix it to none for a file of prompts, "
            f"--shape {past.name}=1x{key_heads}x0xD, and the same for all others",
        )
    odd = [name for name in UNOPENED if _attribute(node, name, 0)]
    odd += [str(value.name) for value in node.inputs[11:] if value is not None]
    if odd or not _attribute(node, "causal", 1):
        raise _refuse(node, f"{', '.join(odd) or 'attention without a causal mask'} is not supported")
    if key is None or value is None:
        packed = op("Reshape", query, [0, 0, heads + 2 * key_heads, -1])
        ends = [0, heads, heads + key_heads, heads + 2 * key_heads]
        parts = [op("Slice", packed, [a], [b], [2]) for a, b in itertools.pairwise(ends)]
    else:
        counts = (heads, key_heads, key_heads)
        parts = [
            op("Reshape", part, [0, 0, n, -1]) for part, n in zip((query, key, value), counts, strict=True)
        ]
    q, k, v = (op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    length = op("Squeeze", op("Slice", op("Shape", q), [2], [3]), [0])
    every = op("Range", np.int64(0), length, np.int64(1))
    if _attribute(node, "do_rotary", 0):
        if cos is None or sin is None or cos.shape is None:
            raise _refuse(node, "its rotary tables are missing")
        rows = op("Unsqueeze", every, [0]) if places is None else places
        tables = [op("Unsqueeze", op("Gather", table, rows, axis=0), [1]) for table in (cos, sin)]
        turn = partial(_rotated, op, tables=tables, half=_size(cos, 1))
        q, k = (turn(part, pairs=bool(_attribute(node, "rotary_interleaved", 0))) for part in (q, k))
    shared = np.repeat(np.arange(key_heads), heads // key_heads)
    keys, values = (op("Gather", part, shared, axis=1) for part in (k, v))
    scores = _scores(op, node, q, keys)
    if extra is not None:
        scores = op("Add", scores, extra)
    shown = _shown(op, every, lengths, int(_attribute(node, "local_window_size", -1)))
    scores = op("Where", shown, scores, _scalar(LOWEST[scores.dtype == ir.DataType.FLOAT16], scores))
    weighted = op("MatMul", op("Softmax", scores, axis=-1), values)
    return op("Reshape", op("Transpose", weighted, perm=[0, 2, 1, 3]), [0, 0, -1]), k, v


UNOPENED = ("softcap", "smooth_softmax", "sliding_window_cache", "qk_output")
"""Attributes of GroupQueryAttention that change what it computes or gives, and have no standard form here."""

LOWEST = (-3e38, -6e4)
"""What hides a score, and what does in halves."""


def _rotated(op: GraphOps, part: ir.Value, *, tables: list[ir.Value], half: int, pairs: bool) -> ir.Value:
    """[B,H,N,D] turned by tables [B,1,N,D'/2], halves against halves, or neighbours (pairs); what lies behind D' stays."""
    turned, rest = op("Slice", part, [0], [2 * half], [3]), op("Slice", part, [2 * half], [2**31 - 1], [3])
    if pairs:
        one, other = (op("Slice", turned, [first], [2**31 - 1], [3], [2]) for first in (0, 1))
    else:
        one, other = op("Slice", turned, [0], [half], [3]), op("Slice", turned, [half], [2 * half], [3])
    cos, sin = tables
    first = op("Sub", op("Mul", one, cos), op("Mul", other, sin))
    second = op("Add", op("Mul", other, cos), op("Mul", one, sin))
    if not pairs:
        return op("Concat", first, second, rest, axis=3)
    woven = op("Concat", *(op("Unsqueeze", each, [4]) for each in (first, second)), axis=4)
    return op("Concat", op("Reshape", woven, [0, 0, 0, 2 * half]), rest, axis=3)


def _shown(op: GraphOps, every: ir.Value, lengths: ir.Value | None, window: int) -> ir.Value:
    """[B,1,N,N] of truth: no later token, none outside a window, none behind the last of its prompt; lengths [B]: that one."""
    rows, columns = op("Unsqueeze", every, [1]), op("Unsqueeze", every, [0])
    shown = op("LessOrEqual", columns, rows)
    if window > 0:
        shown = op("And", shown, op("Greater", columns, op("Sub", rows, np.int64(window))))
    if lengths is None:
        return op("Unsqueeze", shown, [0, 1])
    last = op("Reshape", op("Cast", lengths, to=int(ir.DataType.INT64)), [-1, 1, 1, 1])
    held: ir.Value = op("And", op("Unsqueeze", shown, [0, 1]), op("LessOrEqual", columns, last))
    return held


OPENERS: Mapping[tuple[str, str], Callable[[GraphOps, ir.Node], Opened]] = {
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "EmbedLayerNormalization"): _embed,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
}
