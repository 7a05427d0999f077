"""Write an ONNX Attention node (opset 23 and later) as MatMul, Softmax and MatMul, exactly.

Accepted: Q [B,H,N,D] and K, V [B,G,M,D] with G dividing H, or the 3-D form [B,N,H*D]; an attn_mask that
broadcasts to [B,H,N,M], bool (True takes part) or float (added); is_causal with static N and M; scale;
softcap; softmax_precision. Refused: caches, key lengths, the scores as a second output, windows, masks
shorter than the keys.

The arithmetic and its order are those of the operator's specification: Q and K each times sqrt(scale),
softcap before the mask, and a query row whose keys are all masked gives zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokenrt.errors import UnsupportedError

FORMS = {
    "cache": "past keys and values",
    "key_lengths": "nonpad_kv_seqlen",
    "mask_and_causal": "a mask together with is_causal",
    "mask_type": "a float mask of another type than the queries",
    "scores_output": "more outputs than the first",
    "shared_mask": "one mask row for all queries",
    "shared_query_key": "one tensor as queries and keys",
    "short_mask": "a mask shorter than the keys",
    "softcap": "softcap",
    "softmax_precision": "softmax_precision",
    "value_width": "values of another width than the keys",
    "window": "a sliding window",
}
"""Optional parts of the operator, as messages name them."""

INEXPRESSIBLE = frozenset({"cache", "key_lengths", "scores_output", "short_mask", "window"})

PRECISIONS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.DOUBLE: "fp64",
}


@dataclass(frozen=True)
class Parts:
    """What the shapes and attributes of one Attention node say. Zero for a length that is not static."""

    dtype: ir.DataType = ir.DataType.FLOAT
    heads: int = 0
    key_heads: int = 0
    width: int = 0
    queries: int = 0
    keys: int = 0
    flat: bool = False
    forms: frozenset[str] = frozenset()

    @property
    def precision(self) -> str:
        return PRECISIONS.get(self.dtype, self.dtype.name.lower())


def read(node: ir.Node) -> Parts | None:
    """The parts of an Attention node, or None where a shape or type it depends on is not known."""
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None or query.dtype is None:
        return None
    dims = [_dims(item) for item in (query, key, value)]
    if any(item is None for item in dims):
        return None
    q, k, v = (item for item in dims if item is not None)
    flat = len(q) == 3
    if flat:
        heads, key_heads = _integer(node, "q_num_heads"), _integer(node, "kv_num_heads")
        if not heads or not key_heads or not q[2]:
            return None
        width, value_width = q[2] // heads, v[2] // key_heads
        queries, keys = q[1], k[1]
    else:
        heads, key_heads, width, value_width, queries, keys = q[1], k[1], q[3], v[3], q[2], k[2]
        if not (heads and key_heads and width):
            return None
    forms = _forms(node, query.dtype, queries, keys)
    if value_width and value_width != width:
        forms.add("value_width")
    return Parts(query.dtype, heads, key_heads, width, queries, keys, flat, frozenset(forms))


def decompose(node: ir.Node, parts: Parts, names: set[str], label: str) -> None:
    """Replace `node` in its graph; `names` are the value names in use and grow by the new ones.

    Raises: UnsupportedError where the form has no exact counterpart; `label` names the node in it.
    """
    if refused := parts.forms & INEXPRESSIBLE:
        what = ", ".join(FORMS[form] for form in sorted(refused))
        raise UnsupportedError(
            f"{label} uses {what}: the target does not take that and it cannot be split exactly; "
            "export the model without it"
        )
    scale = node.attributes.get_float("scale", 1 / math.sqrt(parts.width))
    if scale < 0:
        raise UnsupportedError(f"{label} has the scale {scale}; only positive scales can be split exactly")
    emit = _Emitter(node, names)
    query, key, value = (_given(item) for item in node.inputs[:3])
    root = emit.constant("root_scale", np.float64(math.sqrt(scale)), parts.dtype)
    query = emit("query", "Mul", [emit.heads("query_heads", query, parts.heads, parts.flat), root])
    key = emit.heads("key_heads", key, parts.key_heads, parts.flat)
    value = emit.heads("value_heads", value, parts.key_heads, parts.flat)
    if parts.heads != parts.key_heads:
        # Key head g serves the queries' heads g*r .. g*r+r-1.
        order = np.repeat(np.arange(parts.key_heads), parts.heads // parts.key_heads)
        index = emit.constant("head_of_query", order, ir.DataType.INT64)
        key = emit("key_repeated", "Gather", [key, index], axis=1)
        value = emit("value_repeated", "Gather", [value, index], axis=1)
    key = emit("key_scaled", "Mul", [emit("key_transposed", "Transpose", [key], perm=[0, 1, 3, 2]), root])
    scores = emit("scores", "MatMul", [query, key])
    if cap := node.attributes.get_float("softcap", 0.0):
        limit = emit.constant("softcap", np.float64(cap), parts.dtype)
        scores = emit("capped", "Mul", [emit("bent", "Tanh", [emit("steep", "Div", [scores, limit])]), limit])
    scores, reachable = _mask(emit, node, parts, scores, label)
    precision = _integer(node, "softmax_precision")
    other = precision not in (0, parts.dtype.value)
    if other:
        scores = emit("scores_cast", "Cast", [scores], to=precision)
    weights = emit("weights", "Softmax", [scores], axis=-1)
    if other:
        weights = emit("weights_cast", "Cast", [weights], to=parts.dtype.value)
    result = emit("result", "MatMul", [weights, value])
    if reachable is not None:
        # After the product, so that the two products and the softmax between them stay one pattern to fuse.
        zero = emit.constant("zero", np.float64(0), parts.dtype)
        result = emit("result_or_zero", "Where", [reachable, result, zero])
    if parts.flat:
        tokens = emit("result_tokens", "Transpose", [result], perm=[0, 2, 1, 3])
        shape = emit.constant("flat", np.array([0, 0, -1]), ir.DataType.INT64)
        result = emit("result_flat", "Reshape", [tokens, shape])
    emit.replace(result)


def _mask(
    emit: _Emitter, node: ir.Node, parts: Parts, scores: ir.Value, label: str
) -> tuple[ir.Value, ir.Value | None]:
    """The masked scores, and where a row may be masked throughout, bool [..,N,1]: whether it has a key."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    causal = None
    if _integer(node, "is_causal"):
        if not (parts.queries and parts.keys):
            raise UnsupportedError(f"{label} is causal over a dynamic number of tokens; fix it with --shape")
        allowed = np.tril(np.ones((parts.queries, parts.keys), np.bool_))
        causal = emit.constant("causal", allowed, ir.DataType.BOOL)
    if mask is None:
        if causal is None:
            return scores, None
        return emit("masked", "Where", [causal, scores, _nothing(emit, parts)]), None
    known = ir.convenience.get_const_tensor(mask)
    array = None if known is None else known.numpy()
    if mask.dtype == ir.DataType.BOOL:
        allowed_value = mask if causal is None else emit("allowed", "And", [mask, causal])
        scores = emit("masked", "Where", [allowed_value, scores, _nothing(emit, parts)])
        if array is not None and causal is None and array.any(-1).all():
            return scores, None
        number = emit("allowed_number", "Cast", [allowed_value], to=ir.DataType.FLOAT.value)
        none = emit.constant("none", np.float64(0), ir.DataType.FLOAT)
        return scores, emit("reachable", "Greater", [_row_maximum(emit, number), none])
    if "mask_type" in parts.forms:
        mask = emit("mask_cast", "Cast", [mask], to=parts.dtype.value)
    if causal is not None:
        mask = emit("causal_mask", "Where", [causal, mask, _nothing(emit, parts)])
    scores = emit("masked", "Add", [scores, mask])
    if array is not None and causal is None and not np.isneginf(array.max(-1)).any():
        return scores, None
    masked = emit("row_masked", "Equal", [_row_maximum(emit, mask), _nothing(emit, parts)])
    return scores, emit("reachable", "Not", [masked])


def _row_maximum(emit: _Emitter, value: ir.Value) -> ir.Value:
    axes = emit.constant("last_axis", np.array([-1]), ir.DataType.INT64)
    return emit("row_maximum", "ReduceMax", [value, axes], keepdims=1)


def _nothing(emit: _Emitter, parts: Parts) -> ir.Value:
    return emit.constant("minus_infinity", np.float64(-np.inf), parts.dtype)


class _Emitter:
    """Collects the nodes that take the place of one node, with unique names."""

    def __init__(self, node: ir.Node, names: set[str]) -> None:
        self.node, self.names, self.nodes = node, names, list[ir.Node]()
        self.base = node.name or str(node.outputs[0].name)

    def __call__(
        self, role: str, operator: str, inputs: Sequence[ir.Value], **attributes: int | Sequence[int]
    ) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes or None, name=self._name(role))
        made.outputs[0].name = str(made.name)
        self.nodes.append(made)
        return made.outputs[0]

    def constant(self, role: str, array: np.ndarray | np.generic, dtype: ir.DataType) -> ir.Value:
        tensor = ir.tensor(np.asarray(array).astype(dtype.numpy()), dtype=dtype)
        made = ir.node("Constant", [], attributes={"value": tensor}, name=self._name(role))
        made.outputs[0].name = str(made.name)
        self.nodes.append(made)
        return made.outputs[0]

    def heads(self, role: str, value: ir.Value, heads: int, flat: bool) -> ir.Value:
        """[B,N,H*D] -> [B,H,N,D]; four dimensions pass."""
        if not flat:
            return value
        shape = self.constant(f"{role}_shape", np.array([0, 0, heads, -1]), ir.DataType.INT64)
        split = self(f"{role}_split", "Reshape", [value, shape])
        return self(role, "Transpose", [split], perm=[0, 2, 1, 3])

    def replace(self, result: ir.Value) -> None:
        graph = self.node.graph
        if graph is None:
            raise UnsupportedError(f"node {self.base!r} belongs to no graph")
        ir.convenience.replace_nodes_and_values(
            graph, self.node, [self.node], self.nodes, self.node.outputs[:1], [result]
        )

    def _name(self, role: str) -> str:
        name, number = f"{self.base}_{role}", 1
        while name in self.names:
            number += 1
            name = f"{self.base}_{role}_{number}"
        self.names.add(name)
        return name


def _forms(node: ir.Node, dtype: ir.DataType, queries: int, keys: int) -> set[str]:
    given = [value is not None for value in node.inputs] + [False] * 7
    found = set()
    if node.inputs[0] is node.inputs[1]:
        found.add("shared_query_key")
    if given[4] or given[5] or _present(node, 1) or _present(node, 2):
        found.add("cache")
    if given[6]:
        found.add("key_lengths")
    if _present(node, 3):
        found.add("scores_output")
    if node.attributes.get_float("softcap", 0.0):
        found.add("softcap")
    if _integer(node, "softmax_precision"):
        found.add("softmax_precision")
    if max(_integer(node, "left_window_size", -1), _integer(node, "right_window_size", -1)) >= 0:
        found.add("window")
    if not given[3]:
        return found
    mask = _given(node.inputs[3])
    if _integer(node, "is_causal"):
        found.add("mask_and_causal")
    if mask.dtype not in (None, ir.DataType.BOOL, dtype):
        found.add("mask_type")
    dims = _dims(mask)
    # A last dimension of 1 is refused too: the specification pads it where broadcasting would repeat it.
    if dims and dims[-1] and keys and dims[-1] != keys:
        found.add("short_mask")
    if dims is not None and queries != 1 and (len(dims) == 1 or dims[-2] == 1):
        found.add("shared_mask")
    return found


def _present(node: ir.Node, index: int) -> bool:
    return len(node.outputs) > index and bool(node.outputs[index].name)


def _dims(value: ir.Value) -> tuple[int, ...] | None:
    """Static sizes, with 0 for a dimension that is not."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes.get_int(name, default)


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise UnsupportedError("an Attention node lacks one of its inputs")
    return value
