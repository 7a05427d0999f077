"""Attention in any layout, as softmax(scale q k^T + masks) v on [B,H,N,D] with the softmax over the last axis.

Layout nodes on the way from the product of queries and keys to the product with the values leave it; masks and the
operands take them over. Whoever reads something on the way gets it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import LAYOUT, Builder, permutation
from tokenrt.passes.graph.normal.chain import Chain
from tokenrt.passes.graph.normal.layout import Atoms, Axes, Axis, Unfit, arrange
from tokenrt.passes.graph.shapes import describe

UNFIT = "tokenrt.unfit"
"""Where a softmax that could not be brought to the form keeps the reason (`Node.meta`, never written to a file)."""

SCALES = frozenset({"Cast", "Div", "Identity", "Mul", "Reshape"})
"""What may stand between queries and the Reshape that folds their heads into the batch."""


@dataclass(frozen=True)
class Plan:
    """The axes of every value on the way in atoms, those of the form it gets, and which side of the product asks.

    ways: one entry for each of `Chain.values`. outer: the batch axes of the form.
    """

    atoms: Atoms
    ways: tuple[Axes, ...]
    outer: Axes
    rows: Axis
    columns: Axis
    turned: bool


def straighten(build: Builder, chain: Chain) -> bool:
    """Rewrite one attention; whether there was something to do. Raises: Unfit saying why it cannot be done."""
    if is_straight(build, chain):
        return False
    plan = survey(build, chain)
    _rebuild(build, chain, plan)
    return True


def is_straight(build: Builder, chain: Chain) -> bool:
    """Whether an attention has the form already."""
    dims = build.dims(chain.product.outputs[0])
    axis = chain.softmax.attributes.get("axis")
    last = axis is None or axis.value % len(dims) == len(dims) - 1
    moved = any(node.op_type in LAYOUT for node, _ in (*chain.above, *chain.below))
    folded = len(dims) == 3 and _unfolded(build, chain) is not None
    return len(dims) in (3, 4) and last and not moved and not folded and chain.side == 0


def survey(build: Builder, chain: Chain) -> Plan:
    """How the axes run through an attention. Raises: Unfit where they cannot be brought to the form."""
    atoms = Atoms()
    dims = build.dims(chain.product.outputs[0])
    if len(dims) < 3 or 1 in dims[-2:]:
        raise Unfit("its product has no batch axis, or one query or one key only")
    first = atoms.new(dims)
    apart = _unfolded(build, chain) if len(dims) == 3 else None
    unfolded = atoms.regroup(first[:1], apart) if apart is not None else None
    ways = [first]
    for node, _ in chain.above:
        ways.append(_behind(build, atoms, node, ways[-1]))
    weights = ways[-1]
    place = chain.softmax.attributes["axis"].value if "axis" in chain.softmax.attributes else -1
    summed = atoms.whole(weights[place])
    ways.append(weights)
    for node, _ in chain.below:
        ways.append(_behind(build, atoms, node, ways[-1]))
    rows, columns = (atoms.whole(axis) for axis in first[-2:])
    turned = summed == rows
    if turned:
        rows, columns = columns, rows
    if summed != columns:
        raise Unfit(
            f"the softmax runs over axis {place} of its scores, which is neither that of the queries nor that of the keys"
        )
    end = [atoms.whole(axis) for axis in ways[-1][-2:]]
    if end != ([rows, columns] if chain.side == 0 else [columns, rows]):
        raise Unfit("the product with the values does not sum over the keys that the softmax ran over")
    outer = _outer(atoms, ways, unfolded, (rows, columns))
    return Plan(atoms, tuple(ways), outer, rows, columns, turned)


def _behind(build: Builder, atoms: Atoms, node: ir.Node, axes: Axes) -> Axes:
    """The axes of the result of one step."""
    if node.op_type == "Transpose":
        return tuple(axes[axis] for axis in permutation(node, len(axes)))
    if node.op_type in LAYOUT:
        return atoms.regroup(axes, build.dims(node.outputs[0]))
    return axes


def _unfolded(build: Builder, chain: Chain) -> tuple[int, ...] | None:
    """(B, H), where the first axis of [B*H,N,D] queries was two axes before."""
    value = chain.product.inputs[0]
    while value is not None and (node := value.producer()) is not None and node.op_type in SCALES:
        before = node.inputs[0]
        if before is None or not build.known(before) or not build.known(value):
            return None
        dims, own = build.dims(before), build.dims(value)
        if node.op_type == "Reshape":
            same = len(dims) == 4 and len(own) == 3 and dims[2:] == own[1:]
            return (dims[0], dims[1]) if same and prod(dims[:2]) == own[0] else None
        if dims != own:
            return None
        value = before
    return None


def _outer(atoms: Atoms, ways: list[Axes], unfolded: Axes | None, inner: tuple[Axis, Axis]) -> Axes:
    """The two batch axes of the form (one, where the product has one and nothing ever divides it)."""
    lead = tuple(atoms.whole(axis) for axis in ways[0][:-2])
    if len(lead) == 2:
        return lead
    if len(lead) == 1:
        if unfolded is not None:
            return tuple(atoms.whole(axis) for axis in unfolded)
        for way in ways:
            axes = tuple(atoms.whole(axis) for axis in way)
            if len(axes) == 4 and set(axes[2:]) == set(inner) and (*axes[0], *axes[1]) == lead[0]:
                return axes[:2]
        return lead
    long = [axis for axis in lead if axis]
    if len(long) < 2:
        only = long[0] if long else ()
        return (only, ()) if lead[0] else ((), only)
    return tuple(atom for axis in long[:-1] for atom in axis), long[-1]


def _rebuild(build: Builder, chain: Chain, plan: Plan) -> None:
    """Make the attention anew in the form, beside the old one; then let it stand in its place."""
    atoms, outer = plan.atoms, plan.outer
    form: Axes = (*outer, plan.rows, plan.columns)
    size = atoms.dims(form)
    asks, answers = chain.product.inputs[:: -1 if plan.turned else 1]
    lead = plan.ways[0][:-2]
    weighted = chain.weighted
    values = weighted.inputs[1 - chain.side]
    assert asks is not None
    assert answers is not None
    assert values is not None
    width, depth = _inner(build, atoms, asks, plan.turned), _depth(build, atoms, values, chain.side)
    query = _operand(build, atoms, asks, (lead, plan.rows, width, plan.turned), (*outer, plan.rows, width))
    key = _operand(
        build, atoms, answers, (lead, width, plan.columns, plan.turned), (*outer, width, plan.columns)
    )
    here = build.again(chain.product, (query, key), size)
    made = [here]
    ways = iter(plan.ways[1:])
    for steps, last in ((chain.above, False), (chain.below, True)):
        for node, index in steps:
            axes = next(ways)
            if node.op_type not in LAYOUT:
                others = _others(build, node, index, atoms, axes, form)
                others[index] = here
                here = build.again(node, others, size)
            made.append(here)
        if not last:
            next(ways)
            here = build.again(chain.softmax, (here,), size, axis=-1)
            made.append(here)
    end = plan.ways[-1][:-2]
    value = _operand(
        build, atoms, values, (end, plan.columns, depth, bool(chain.side)), (*outer, plan.columns, depth)
    )
    result = build.again(weighted, (here, value), (*size[:-1], atoms.size(depth)))
    inner = (depth, plan.rows) if chain.side else (plan.rows, depth)
    back = arrange(build, result, atoms, (*outer, plan.rows, depth), (*end, *inner))
    _take_over(build, chain, made, plan, back)


def _inner(build: Builder, atoms: Atoms, value: ir.Value, turned: bool) -> Axis:
    """D, the axis that queries and keys are multiplied along."""
    return atoms.new(build.dims(value)[-2:])[0 if turned else 1]


def _depth(build: Builder, atoms: Atoms, value: ir.Value, side: int) -> Axis:
    """The channels of the values."""
    return atoms.new(build.dims(value)[-2:])[0 if side else 1]


def _operand(
    build: Builder, atoms: Atoms, value: ir.Value, has: tuple[Axes, Axis, Axis, bool], goal: Axes
) -> ir.Value:
    """One side of a product in the form; has: its batch axes, its last two in the form, and whether they are turned."""
    lead, first, second, turned = has
    last = (second, first) if turned else (first, second)
    return arrange(build, value, atoms, (*lead, *last), goal)


def _others(
    build: Builder, node: ir.Node, index: int, atoms: Atoms, axes: Axes, form: Axes
) -> list[ir.Value | None]:
    """The inputs of a step, masks and scales in the form. Raises: Unfit naming the step."""
    try:
        return [
            value if value is None or place == index else arrange(build, value, atoms, axes, form)
            for place, value in enumerate(node.inputs)
        ]
    except Unfit as cause:
        seen = describe(build.dims(node.outputs[0]))
        raise Unfit(
            f"{node.op_type} node {node.name!r} brings a mask or bias to scores seen as {seen}, which are "
            f"{describe(atoms.dims(form))} in their product: {cause}"
        ) from cause


def _take_over(build: Builder, chain: Chain, made: list[ir.Value], plan: Plan, back: ir.Value) -> None:
    """Let the new values stand where the old ones were read, and remove the old nodes."""
    inside = set(chain.nodes())
    form: Axes = (*plan.outer, plan.rows, plan.columns)
    for old, new, axes in zip(chain.values(), made, plan.ways, strict=True):
        if old.is_graph_output() or any(reader not in inside for reader, _ in old.uses()):
            build.replace(old, arrange(build, new, plan.atoms, form, axes))
    build.replace(chain.weighted.outputs[0], back)
    for node in reversed(chain.nodes()):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            build.graph.remove(node, safe=True)
