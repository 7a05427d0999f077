"""Which tokens each entry of a tensor behind the blocks is made of, found by moving numbers instead of data.

Projectors move tokens (reshapes, transposes, slices, crops put together), mix channels (products with weights, norms) and pool
neighbours. Here every entry holds the number of a group of tokens: moves move the numbers, and what mixes entries joins their
groups. One picture stands for a dynamic batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.marks import Array
from tokenrt.passes.analysis.rules import elementwise
from tokenrt.passes.analysis.stream import Layout
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.shapes import Shapes, one_picture

NOTHING = -1
"""The group of an entry that no token reaches."""
MOST = 1 << 26
"""Entries of the largest tensor that is followed."""

RELAID = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
MOVED = frozenset(
    "Concat DepthToSpace Gather GatherElements GatherND Slice SpaceToDepth Split Tile Transpose".split()
)
NORMS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "Softmax",
        "LpNormalization",
        "LogSoftmax",
    }
)
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax", "ReduceMin"})
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})


@dataclass
class Groups:
    """Groups of tokens by number: those below `single` are one token each, the others are listed."""

    single: int
    members: list[tuple[int, ...]] = field(default_factory=list)
    known: dict[tuple[int, ...], int] = field(default_factory=dict)

    def tokens(self, group: int) -> tuple[int, ...]:
        """The tokens of a group, ascending."""
        if group == NOTHING:
            return ()
        return (group,) if group < self.single else self.members[group - self.single]

    def joined(self, groups: Sequence[int]) -> int:
        """The group of all tokens that are in one of these."""
        tokens = tuple(sorted({token for group in groups for token in self.tokens(int(group))}))
        if len(tokens) < 2:
            return tokens[0] if tokens else NOTHING
        if tokens not in self.known:
            self.known[tokens] = self.single + len(self.members)
            self.members.append(tokens)
        return self.known[tokens]

    def over(self, rows: Array) -> Array:
        """The joined group of each row of [...,L]."""
        flat = rows.reshape(-1, rows.shape[-1])
        found = flat[:, 0].copy()
        made: dict[bytes, int] = {}
        for place in np.flatnonzero((flat != flat[:, :1]).any(axis=1)):
            there = np.unique(flat[place])
            key = there.tobytes()
            if key not in made:
                made[key] = self.joined(there.tolist())
            found[place] = made[key]
        return found.reshape(rows.shape[:-1])


@dataclass(frozen=True)
class Origin:
    """What `trace` finds.

    groups: by number. of: the groups of the entries of a tensor. starts: the first token of each transformer. Token n of
    picture b of transformer t has the number starts[t] + b N + n. inside: the nodes of the blocks, which are not followed.
    """

    groups: Groups
    of: Mapping[ir.Value, Array]
    starts: tuple[int, ...]
    inside: frozenset[ir.Node]


def trace(graph: ir.Graph, shapes: Shapes, structures: Sequence[Structure]) -> Origin:
    """Follow the tokens of every transformer from the outputs of its blocks to wherever they can be told."""
    starts, total = [], 0
    for structure in structures:
        starts.append(total)
        total += one_picture((structure.stream.rows,))[0] * structure.tokens
    groups = Groups(total)
    found: dict[ir.Value, Array] = {}
    inside = frozenset().union(*(structure.body for structure in structures))
    for start, structure in zip(starts, structures, strict=True):
        for block in structure.blocks:
            held = structure.held(block.output, shapes)
            # Of rows that lie side by side no number tells one from another.
            if held is not None and held.across == 1:
                found[block.output] = _numbered(held, structure.tokens, start)
    lost: set[ir.Value] = set()
    for node in graph:
        if node in inside:
            lost.update(value for value in node.outputs if value not in found)
        elif not lost.isdisjoint(node.inputs):
            lost.update(node.outputs)
        elif any(value in found for value in node.inputs):
            made = step(node, found, shapes, groups)
            if made is None:
                lost.update(node.outputs)
            else:
                found.update(zip(node.outputs, made, strict=False))
    return Origin(groups, found, tuple(starts), inside)


def _numbered(held: Layout, tokens: int, start: int) -> Array:
    """The numbers of the tokens in a stream's own layout."""
    rows = one_picture((held.rows,))[0]
    number = start + np.arange(rows * tokens, dtype=np.int32).reshape(rows, tokens, 1)
    full = np.broadcast_to(number, (rows, tokens, held.channels))
    turned = {"rows": (0, 1, 2), "sequence": (1, 0, 2), "channels": (0, 2, 1)}[held.order]
    return np.ascontiguousarray(full.transpose(turned)).reshape(one_picture(held.dims))


def step(
    node: ir.Node, found: Mapping[ir.Value, Array], shapes: Shapes, groups: Groups
) -> list[Array] | None:
    """The groups of a node's outputs; None where they cannot be told."""
    if not all(value is None or shapes.known(value) for value in (*node.inputs, *node.outputs)):
        return None
    out = one_picture(shapes.of(node.outputs[0]))
    if prod(out) > MOST:
        return None
    data = node.inputs[0]
    given = found.get(data) if data is not None else None
    kind = node.op_type
    if kind in RELAID and given is not None:
        return [given.reshape(out)]
    if kind == "Expand" and given is not None:
        return [np.broadcast_to(given, out)]
    if kind in MOVED:
        return _moved(node, found, shapes)
    if (node.domain if node.domain != "ai.onnx" else "", kind) in elementwise.RULES:
        return [_together([_there(value, found, shapes) for value in node.inputs if value], out, groups)]
    if given is None:
        return None
    if kind in NORMS:
        axis = int(node.attributes["axis"].value) if "axis" in node.attributes else -1
        lead = given.shape[: axis % given.ndim]
        joined = groups.over(given.reshape(*lead, -1))
        return [np.broadcast_to(joined.reshape(*lead, *[1] * (given.ndim - len(lead))), out)]
    if kind in REDUCTIONS:
        return _reduced(node, given, out, groups)
    weights = node.inputs[1] if kind in PRODUCTS else None
    if weights is not None and weights.const_value is not None and len(shapes.of(weights)) == 2:
        return [np.broadcast_to(groups.over(given)[..., None], out)]
    if given.ndim != 4 or kind not in ("AveragePool", "Resize"):
        return None
    plane = given[:, 0]  # every channel of a place has the same tokens
    places = (_pooled if kind == "AveragePool" else _resized)(node, plane, out, groups)
    return None if places is None else [np.broadcast_to(places[:, None], out)]


def _there(value: ir.Value, found: Mapping[ir.Value, Array], shapes: Shapes) -> Array:
    """The groups of a value; of one that no token reaches nothing, of every shape."""
    return found.get(value, np.full((1,) * len(shapes.of(value)), NOTHING, np.int32))


def _together(parts: Sequence[Array], out: tuple[int, ...], groups: Groups) -> Array:
    """Groups of what is computed entry by entry."""
    spread = [np.broadcast_to(part, out) for part in parts if (part != NOTHING).any()]
    if len(spread) == 1 or all(np.array_equal(part, spread[0]) for part in spread[1:]):
        return spread[0]
    return groups.over(np.stack(spread, axis=-1))


def _moved(node: ir.Node, found: Mapping[ir.Value, Array], shapes: Shapes) -> list[Array] | None:
    """What an operator that moves entries does to their numbers; other inputs are constants."""
    from onnx.reference import ReferenceEvaluator

    feeds: dict[str, Any] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value in found:
            feeds[str(value.name)] = found[value]
        elif node.op_type == "Concat":
            feeds[str(value.name)] = np.full(one_picture(shapes.of(value)), NOTHING, np.int32)
        elif value.const_value is None:
            return None
        else:
            feeds[str(value.name)] = value.const_value.numpy()
    try:
        made = [np.asarray(each) for each in ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)]
    except Exception:  # whatever the evaluator cannot run is not followed
        return None
    wanted = [one_picture(shapes.of(value)) for value in node.outputs]
    return made if [each.shape for each in made] == wanted else None


def _reduced(node: ir.Node, given: Array, out: tuple[int, ...], groups: Groups) -> list[Array] | None:
    axes = node.attributes["axes"].value if "axes" in node.attributes else None
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        axes = None if constant is None else constant.numpy().tolist()
    if axes is None:
        return None
    last = [axis % given.ndim for axis in axes]
    kept = [axis for axis in range(given.ndim) if axis not in last]
    turned = given.transpose(*kept, *last)
    return [groups.over(turned.reshape(*turned.shape[: len(kept)], -1)).reshape(out)]


def _pooled(node: ir.Node, plane: Array, out: tuple[int, ...], groups: Groups) -> Array | None:
    """Windows of [B,h,w]; what lies beyond the edge is nothing."""
    (height, width), (down, right) = node.attributes["kernel_shape"].value, _integers(node, "strides", [1, 1])
    top, left, *_ = _integers(node, "pads", [0, 0, 0, 0])
    rows, columns = out[2:]
    padded = np.full(
        (len(plane), (rows - 1) * down + height, (columns - 1) * right + width), NOTHING, np.int32
    )
    inner = plane[:, : padded.shape[1] - top, : padded.shape[2] - left]
    padded[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))[
        :, ::down, ::right
    ]
    return groups.over(windows.reshape(*windows.shape[:3], -1))


def _resized(node: ir.Node, plane: Array, out: tuple[int, ...], groups: Groups) -> Array | None:
    """The rows and columns that each place of a resized [B,h,w] is made of, found by resizing one after the other alone."""
    import onnx.helper
    import onnxruntime

    if any(value is not None and value.const_value is None for value in node.inputs[1:]):
        return None
    proto = ir.to_proto(node)
    proto.input[0], proto.output[0] = "x", "y"
    constants = [
        ir.to_proto(ir.Tensor(_of_planes(value.const_value.numpy()), name=value.name))
        for value in node.inputs[1:]
        if value is not None and value.const_value is not None
    ]
    height, width = plane.shape[1:]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph([proto], "resize", ends[:1], ends[1:], constants)
    opsets = [onnx.helper.make_opsetid("", node.version or 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        sides = [
            session.run(None, {"x": np.broadcast_to(alone, (1, 1, height, width)).astype(np.float32)})[0][
                0, 0
            ]
            for alone in (*np.eye(height)[:, :, None], *np.eye(width)[:, None])
        ]
    except Exception:  # a form of Resize that the runtime refuses is not followed
        return None
    made = np.stack(sides) != 0
    if made.shape[1:] != out[2:]:
        return None
    down = [np.flatnonzero(made[:height, row, :].any(axis=-1)) for row in range(out[2])]
    across = [np.flatnonzero(made[height:, :, column].any(axis=-1)) for column in range(out[3])]
    return np.stack(
        [
            np.stack(
                [groups.over(plane[:, rows][:, :, columns].reshape(len(plane), -1)) for columns in across],
                axis=-1,
            )
            for rows in down
        ],
        axis=1,
    )


def _of_planes(sizes: Array) -> Array:
    """Scales or sizes of a Resize for one picture of one channel."""
    changed = sizes.copy()
    if changed.size == 4:
        changed[:2] = 1
    return changed


def _integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return [*node.attributes[name].value] if name in node.attributes else default
