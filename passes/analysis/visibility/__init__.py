"""Who may see whom in an attention: what its masks, conditions and factors let through, and whether tokens may merge under them.

A merged token carries what its members hold to everybody who sees one of them. That creates no way for information
that the model did not have where every token that can leave reaches every other one, over any number of layers: under
no mask, under padding (a key hidden from everybody), under a band around each token, under windows where other layers
have none or others. Under a causal mask, behind a prefix, between frames or pictures that are kept apart it would.

Constants are read entry by entry. What depends on an input must be the same for all queries, or for all keys where both
sides are hidden by the same input; only then is it padding, whatever the input holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.attention import HIDDEN, PASSING, Array, Core
from tokenrt.passes.analysis.visibility.reader import Reader, Unproven, bounded, varies
from tokenrt.passes.analysis.visibility.relation import connected, describe, told_to_all
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.shapes import Shapes


def obstacle(core: Core, shapes: Shapes, free: Sequence[int]) -> str | None:
    """Why tokens of `free` may not merge or move under the masks of a self-attention, or None where they may."""
    if core.queries != core.keys:
        return None
    try:
        relations = seen(core, shapes)
    except Unproven as unproven:
        return (
            f"{unproven.describe()}; export the model with that input as a constant, or reduce other blocks or "
            "another part of the model (for a vision-language model its vision tower)"
        )
    for relation in relations:
        kept = [token for token in free if relation[:, token].any()]
        inner = relation[np.ix_(kept, kept)]
        if not connected(inner):
            return describe(inner, kept[0])
    return None


def prompts(core: Core, shapes: Shapes) -> bool:
    """Whether the last token alone has seen all, as under a causal mask, with a prefix or not; or may have, by a run's mask."""
    try:
        relations = seen(core, shapes) if core.queries == core.keys else []
    except Unproven:
        return True
    return any(
        bool(relation[-1, :-1].any() and not relation[:-1, -1].any())
        and bool(relation[-1].all() or not np.triu(relation, 1).any())
        for relation in relations
    )


def together(cores: Iterable[Core], shapes: Shapes) -> Array | None:
    """[N,N] of truth, who (row) sees whom in any of these self-attentions; None where one is not known to have windows or none.

    Windows keep tokens apart in one attention that see each other in the next: over all layers there is a way between them.
    In each a token sees itself and is seen by whom it sees, so that none that is left is without a key, however few of its
    window are.
    """
    total: Array | None = None
    for core in cores:
        if core.queries != core.keys:
            continue
        try:
            relations = seen(core, shapes)
        except Unproven:
            return None
        if len(relations) != 1 or not relations[0].diagonal().all() or (relations[0] != relations[0].T).any():
            return None
        total = relations[0] if total is None else np.asarray(total | relations[0])
    return total


def unseen(core: Core, shapes: Shapes, asked: Sequence[int]) -> set[int]:
    """Those of `asked` from which, under the masks of a self-attention, not all tokens learn.

    A choice that read such a token would tell others of it, as an earlier word of a later one. Raises: Unproven.
    """
    relations = seen(core, shapes) if core.queries == core.keys else []
    partial = [relation for relation in relations if not relation.all()]
    return {token for relation in partial for token in asked if not told_to_all(relation, token)}


def seen(core: Core, shapes: Shapes) -> list[Array]:
    """[N,N] of truth, who (row) may see whom in any head, for each entry of the batch that differs.

    Padding that an input decides counts as shown. Raises: Unproven.
    """
    rank = len(shapes.of(core.node.outputs[0]))
    total: Array = np.ones((1,) * (rank - 2) + (core.queries, core.keys), np.bool_)
    total = np.tril(total) if core.causal else total
    for node, index in (*core.masks, *_gates(core, shapes)):
        shown = _operand(core, node, index, shapes)
        if shown is None:
            continue
        shown = shown.reshape((1,) * (rank - shown.ndim) + shown.shape)
        turned = np.swapaxes(shown, -1, -2) if _key_axis(core, shapes) == -2 else shown
        total = np.asarray(np.logical_and(total, turned))
    total = np.asarray(total.any(axis=-3, keepdims=True)) if rank > 3 else total
    each = total.reshape(-1, core.queries, core.keys)
    return [*(each if len(each) == 1 else np.unique(each, axis=0))]


def _key_axis(core: Core, shapes: Shapes) -> int:
    """The axis of the keys in scores and masks, from the end."""
    axis = core.node.attributes.get("axis") if core.node.op_type == "Softmax" else None
    rank = len(shapes.of(core.node.outputs[0]))
    return -1 if axis is None else int(axis.value) % rank - rank


def _gates(core: Core, shapes: Shapes) -> Iterator[tuple[ir.Node, int]]:
    """What the weights meet between the softmax and the product with the values."""
    if core.fused:
        return
    todo = [core.node.outputs[0]]
    while todo:
        value = todo.pop()
        for node, index in value.uses():
            kept = node.op_type in PASSING and shapes.known(node.outputs[0])
            if kept and shapes.of(node.outputs[0]) == shapes.of(value):
                yield from ((node, other) for other in range(len(node.inputs)) if other != index)
                todo.append(node.outputs[0])


def _operand(core: Core, node: ir.Node, index: int, shapes: Shapes) -> Array | None:
    """[..,Q,K]: what this input of a node on the scores or weights shows; None where it hides nothing but padding."""
    value = node.inputs[index]
    if (
        value is None
        or (node.op_type == "Where" and index)
        or node.op_type in ("Clip", "Dropout", "CastLike")
    ):
        return None
    key = _key_axis(core, shapes)
    query = -3 - key
    if value.const_value is not None:
        return _shown(core, node, index, value.const_value.numpy())
    if not varies(value, query, shapes) or _of_scores(core, value):
        return None
    if node.op_type in ("Add", "Sub", "Sum", "Attention") and bounded(value):
        return None
    relations = [_shown(core, node, index, array) for array in Reader(shapes, query, key).alternatives(value)]
    shown = [relation for relation in relations if relation.any()]
    if any(not np.array_equal(shown[0], other) for other in shown[1:]):
        raise Unproven(value)
    return shown[0] if shown else None


def _of_scores(core: Core, value: ir.Value) -> bool:
    """Whether it is made of this attention's own scores or weights: a guard against empty rows, a threshold."""
    readers = [{node for node, _ in end.uses()} for end in (core.query, core.key)]
    scores = {output for node in readers[0] & readers[1] for output in node.outputs}
    return not ancestors((value,)).isdisjoint({*scores, core.node.outputs[0]})


def _shown(core: Core, node: ir.Node, index: int, array: Array) -> Array:
    """Which pairs of tokens the numbers of one operand let through."""
    kind = node.op_type
    if kind == "Where":
        own = {core.node.outputs[0], *(v for v in node.inputs[1:] if v is not None and v.const_value is None)}
        places = [place for place in (1, 2) if node.inputs[place] in own and (node, place) not in core.masks]
        return array if places[:1] != [2] else ~array
    if array.dtype == np.bool_:
        return array
    if kind in ("Mul", "Div"):
        return np.asarray(array != 0 if kind == "Mul" else np.isfinite(array))
    numbers = array.astype(np.float64)
    if kind in ("Add", "Sum", "Attention") or (kind == "Sub" and index == 1):
        numbers = -numbers if kind == "Sub" else numbers
        if array.size == 1:
            return np.ones_like(numbers, np.bool_)
        return np.asarray(numbers >= np.maximum(numbers.max(axis=-1, keepdims=True), 0) - HIDDEN)
    far = np.abs(numbers) > HIDDEN
    return np.ones_like(far) if far.all() else ~far
