"""Attention over more or less than one stream of tokens.

Joint attention: tokens of several streams, text and image, each projected by itself and put one behind the other. A reduction
follows one stream with one residual, and the others stand beside it in queries, keys and values; under a mask it takes none.
And windows that a Split cuts out of the stream, with an attention for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.passes.analysis.attended import places
from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.marks import Mark
from tokenrt.passes.analysis.rules.elementwise import CONTRIB, STANDARD
from tokenrt.passes.analysis.rules.shape import moved
from tokenrt.passes.graph.shapes import Dims, Shapes, describe

RESHAPED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
ALONG = frozenset(
    (
        *STANDARD,
        *CONTRIB,
        *"Concat DequantizeLinear Expand Gather LayerNormalization LpNormalization QuantizeLinear RMSNormalization".split(),
        *"ReduceL2 ReduceMean ReduceSum RotaryEmbedding Slice Split Transpose".split(),
        *RESHAPED,
    )
)
"""What stands between projections and attention: layout, norms of each head, rotary positions."""

REMEDY = (
    "reduce the model's blocks that have one stream (plain self-attention), where it has some, or use a model whose text "
    "and image tokens are one stream"
)


def joined(core: Core, shapes: Shapes) -> str | None:
    """Why an attention over several streams takes no reduction, or None where its keys come of one product each."""
    value, axis = places(core, shapes)[1]
    for node, parts in _along("Concat", value, Mark(axis), core.keys, shapes):
        sources = [frozenset(_products(part, shapes)) for part in parts]
        if len(sources) > 1 and all(sources) and not frozenset.intersection(*sources):
            counts = " and ".join(describe(shapes.of(part)) for part in parts if shapes.known(part))
            return (
                f"it is joint attention: Concat node {node.name!r} puts the tokens of several streams, {counts}, one behind "
                "the other, each with projections and a residual addition of its own, and a reduction follows one stream; "
                f"{REMEDY}"
            )
    return None


def streams(core: Core, shapes: Shapes) -> list[int]:
    """How many tokens each stream of a joint attention has; nothing of any other."""
    value, axis = places(core, shapes)[1]
    for node, found in _along("Concat", value, Mark(axis), core.keys, shapes):
        sources = [frozenset(_products(part, shapes)) for part in found]
        if len(sources) > 1 and all(sources) and not frozenset.intersection(*sources):
            along = node.attributes.get_int("axis", 0)
            return [shapes.of(part)[along] for part in found if shapes.known(part)]
    return []


def parts(value: ir.Value) -> list[ir.Value]:
    """The parts that the result of a joint attention is cut into: where several Slices read it, or one Split."""
    while True:
        readers = [*dict.fromkeys(node for node, _ in value.uses())]
        if len(readers) == 1 and readers[0].op_type in (*RESHAPED, "Transpose", "Identity"):
            value = readers[0].outputs[0]
            continue
        if len(readers) == 1 and readers[0].op_type == "Split":
            return [*readers[0].outputs]
        return [node.outputs[0] for node in readers] if all(n.op_type == "Slice" for n in readers) else []


def parted(core: Core, shapes: Shapes) -> str | None:
    """Why an attention over one window of the tokens takes no reduction, or None where no Split cuts its keys out of more."""
    value, axis = places(core, shapes)[1]
    for node, _ in _along("Split", value, Mark(axis), core.keys, shapes):
        return (
            f"it runs over one of {len(node.outputs)} windows of tokens, which Split node {node.name!r} cuts apart, and what "
            "leaves would leave another number in each; export one attention over all tokens, with a mask that keeps windows "
            "apart, as tokenrt export --part vision does for Qwen2.5-VL"
        )
    return None


def _along(
    kind: str, value: ir.Value, mark: Mark, tokens: int, shapes: Shapes
) -> Iterator[tuple[ir.Node, list[ir.Value]]]:
    """Concats or Splits along the axis that a mark of `value` counts, each with what it reads, back to the projections."""
    todo, seen = [(value, mark)], set[ir.Value]()
    while todo:
        here, at = todo.pop()
        node = here.producer()
        if here in seen or node is None or node.op_type not in ALONG or not shapes.known(here):
            continue
        seen.add(here)
        if node.op_type == kind and node.attributes.get_int("axis", 0) % len(shapes.of(here)) == at.axis:
            yield node, [part for part in node.inputs if part is not None and part.const_value is None]
            continue
        for step in node.inputs:
            if step is not None and step.const_value is None and shapes.known(step):
                todo.extend((step, earlier) for earlier in _earlier(node, at, step, here, tokens, shapes))


def _earlier(
    node: ir.Node, mark: Mark, step: ir.Value, value: ir.Value, tokens: int, shapes: Shapes
) -> Iterator[Mark]:
    """The mark of an input of a node, from that of what the node gives."""
    dims, own = shapes.of(value), shapes.of(step)
    if node.op_type == "Transpose":
        given = node.attributes.get("perm")
        order = list(given.value) if given is not None else list(range(len(dims)))[::-1]
        yield mark.at(order[mark.axis])
    elif node.op_type in RESHAPED:
        yield from _moved(mark, dims, own, tokens)
    else:
        axis = mark.axis - (len(dims) - len(own))
        if axis >= 0 and own[axis] == dims[mark.axis]:
            yield mark.at(axis)


def _moved(mark: Mark, dims: Dims, own: Dims, tokens: int) -> Iterator[Mark]:
    found = moved((mark,), dims, own, tokens)
    if found is not None and len(found) == 1:
        yield found[0]


def _products(value: ir.Value, shapes: Shapes) -> Iterator[ir.Node]:
    """The projections that a part of the keys is made of."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        here = todo.pop()
        node = here.producer()
        if here in seen or node is None:
            continue
        seen.add(here)
        if node.op_type in ALONG:
            todo.extend(step for step in node.inputs if step is not None and step.const_value is None)
        else:
            yield node
