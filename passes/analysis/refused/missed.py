"""Softmaxes that could be attention and fit no form: which, what stands in the way, and what would help.

A softmax that weighs nothing computed (the probabilities of a classifier) is no attention, and one whose scores are a
product with weights (learned queries) pools tokens; neither is a block that was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.errors import ShapeError
from tokenrt.passes.graph.ancestry import nested
from tokenrt.passes.graph.normal.chain import ABOVE, BELOW, between_activations, chain, climb, descend
from tokenrt.passes.graph.normal.straight import UNFIT
from tokenrt.passes.graph.shapes import Shapes

NONE = "no attention found: no softmax between two products and no Attention node"

MIXERS = frozenset({"Conv", "Einsum", "Gemm", "MatMul"})
QUANTIZED = frozenset(
    "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger MatMulNBits "
    "QAttention QGemm QLinearMatMul QuantizeLinear".split()
)
THIN = (
    ABOVE
    | MIXERS
    | QUANTIZED
    | frozenset(
        "BatchNormalization Concat Exp Expand Gather Log LogSoftmax Neg Pad Pow ReduceMax ReduceMean ReduceSum Relu Sigmoid "
        "Slice Softmax Split Sqrt Sum Tanh".split()
    )
)
"""Operators that a search for a product passes on: what people put between the products of an attention."""

NONLINEAR = frozenset(
    "Celu Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu LogSigmoid Mish Pow Relu Selu Sigmoid "
    "Softplus Softsign Sqrt Swish Tanh".split()
)
"""What attention without a softmax makes weights of scores with."""

ENCLOSING = frozenset({"If", "Loop", "Scan"})
"""What attentions inside are refused for by names and words of their own."""

FAR = 16
"""Nodes between a softmax and a product, past which the two have nothing to do with one another."""

OTHERS = "tokens can leave only at blocks of plain attention, where the model has some"


@dataclass(frozen=True)
class Missed:
    """A node that makes weights of scores and is no attention that can be read, and why."""

    node: ir.Node
    reason: str


def missed(model: ir.Graph, shapes: Shapes, found: Iterable[ir.Node]) -> list[Missed]:
    """Every softmax that could be attention and is not among `found`; sigmoids and their like between two products too."""
    known = set(found)
    result = []
    for node in model:
        if node.op_type in ("Softmax", "LogSoftmax") and node not in known:
            reason = _why(node, shapes)
            if reason is not None:
                result.append(Missed(node, reason))
        elif node.op_type in NONLINEAR and _weighs(node, shapes):
            result.append(Missed(node, _without_softmax(node)))
        if node.op_type in ENCLOSING:
            continue
        inner = next((each for each in nested(node) if each.op_type in ("Softmax", "Attention")), None)
        if inner is not None:
            result.append(Missed(inner, _inside(node)))
    return result


def nothing(graph: ir.Graph) -> str:
    """What to say of a model in which nothing is an attention."""
    softmaxes = [node for node in graph if node.op_type in ("Softmax", "LogSoftmax")]
    if not softmaxes:
        return NONE
    names = ", ".join(repr(node.name) for node in softmaxes[:3]) + ", ..." * (len(softmaxes) > 3)
    return (
        f"no attention found: of its {len(softmaxes)} Softmax nodes ({names}) none stands between a product of queries "
        "and keys and a product with values, and there is no Attention node"
    )


def _why(node: ir.Node, shapes: Shapes) -> str | None:
    """Why a softmax is no attention that can be read, or None where it is no attention at all."""
    scores = node.inputs[0]
    if scores is None:
        return None
    if not shapes.known(scores):
        return _of_unknown_shape(scores, node, shapes)
    whole = chain(node, shapes) if node.op_type == "Softmax" else None
    if whole is not None:
        return _unfit(node, shapes)
    above, below = climb(scores, shapes) is not None, any(True for _ in descend(node.outputs[0], shapes))
    near = above or _reaches(scores, _makers, shapes), below or _reaches(node.outputs[0], _readers, shapes)
    if not all(near) or (not above and _learned(scores, shapes)):
        return None
    if not above:
        stop = _stop(scores, _makers, ABOVE, shapes)
        return _between(
            stop, "between the product of queries and keys and the softmax", "mixes the heads of the scores"
        )
    if node.op_type == "LogSoftmax":
        return (
            f"it takes logarithms and no Exp node follows; export the model with a plain softmax, or {OTHERS}"
        )
    stop = _stop(node.outputs[0], _readers, BELOW, shapes)
    return _between(
        stop, "between the softmax and the product with the values", "mixes the heads of the weights"
    )


def _of_unknown_shape(scores: ir.Value, node: ir.Node, shapes: Shapes) -> str | None:
    """Why scores whose shape nobody knows are not read, or None where what they make weighs nothing computed."""
    if not _reaches(node.outputs[0], _readers, shapes):
        return None
    try:
        shapes.of(scores)
    except ShapeError as unknown:
        return str(unknown)
    return None


def _unfit(node: ir.Node, shapes: Shapes) -> str | None:
    """Why an attention whose every step is known has not the one form."""
    reason = node.meta.get(UNFIT)
    if reason is not None:
        return f"{reason}; {OTHERS}"
    scores = node.inputs[0]
    rank = len(shapes.of(scores)) if scores is not None and shapes.known(scores) else 0
    return f"its scores have {rank} axes, and attention is read from scores [B,H,N,N] or [B,N,N] with known sizes; {OTHERS}"


def _between(stop: ir.Node | None, where: str, mixes: str) -> str:
    if stop is None:
        return f"what stands {where} is no scale, mask, bias or change of layout; {OTHERS}"
    name = f"{stop.op_type} node {stop.name!r}"
    if stop.op_type in QUANTIZED:
        return f"{name} stands {where}: reduce the float model, then quantize the result"
    if stop.op_type in MIXERS and any(
        value is not None and value.const_value is not None for value in stop.inputs
    ):
        return f"{name} {mixes} (talking heads), so that no head's weights come of its own queries and keys; {OTHERS}"
    if stop.op_type == "Einsum":
        return (
            f"{name} stands {where}, and its equation {stop.attributes['equation'].value!r} is no product of two "
            "operands; write it as a matmul"
        )
    if stop.op_type in ("Add", "Sub", "Sum", "Softmax"):
        return (
            f"{name} mixes its weights with others before they weigh the values (gated attention); {OTHERS}"
        )
    return f"{name} stands {where} and is no scale, mask, bias or change of layout; {OTHERS}"


def _without_softmax(node: ir.Node) -> str:
    return (
        f"{node.op_type} makes the weights of the scores, not a softmax: they do not sum to one, so a merged token could "
        f"not count as those it stands for; {OTHERS}"
    )


def _inside(node: ir.Node) -> str:
    return (
        f"it lies inside {node.op_type} node {node.name!r}; tokens are followed in the main graph only: export the model so "
        "that the branch is decided when it is exported"
    )


Neighbours = Callable[[ir.Value], Iterator[tuple[ir.Node, ir.Value | None]]]


def _makers(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """The node that makes a value, with each computed input of it."""
    node = value.producer()
    if node is None:
        return
    for step in node.inputs:
        if step is not None and step.const_value is None:
            yield node, step


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """The nodes that read a value, with each result of theirs."""
    for node, _ in value.uses():
        for step in node.outputs:
            yield node, step


def _reaches(value: ir.Value, neighbours: Neighbours, shapes: Shapes) -> bool:
    """Whether thin operators lead from a value, of scores or of weights, to a product of two computed sides."""
    if shapes.known(value) and len(shapes.of(value)) < 3:
        return False
    todo, seen = [(value, 0)], set[ir.Value]()
    while todo:
        here, depth = todo.pop(0)
        for node, step in neighbours(here):
            if _product(node):
                return True
            thin = step is not None and (node.op_type in THIN or _same(node, shapes))
            if step is not None and thin and step not in seen and depth < FAR:
                seen.add(step)
                todo.append((step, depth + 1))
    return False


def _same(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a node of one computed input changes entries only, whatever it is."""
    inputs = [value for value in node.inputs if value is not None and value.const_value is None]
    values = [*inputs, *node.outputs]
    alike = len(inputs) == 1 and all(map(shapes.known, values))
    return alike and len({shapes.of(value) for value in values}) == 1 and "Normalization" not in node.op_type


def _product(node: ir.Node) -> bool:
    """A product of two computed sides, quantized ones included."""
    if node.op_type in ("Einsum", "MatMulInteger", "QLinearMatMul"):
        places = (0, 3) if node.op_type == "QLinearMatMul" else range(len(node.inputs))
        sides = [node.inputs[place] for place in places][: 2 if node.op_type == "MatMulInteger" else None]
        return len(sides) > 1 and all(value is not None and value.const_value is None for value in sides)
    return between_activations(node)


def _stop(value: ir.Value, neighbours: Neighbours, passed: frozenset[str], shapes: Shapes) -> ir.Node | None:
    """The first node on the way to a product that is none of `passed`."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        here = todo.pop(0)
        for node, step in neighbours(here):
            if between_activations(node):
                continue
            if node.op_type not in passed or step is None:
                if step is None or _product(node) or _reaches(step, neighbours, shapes):
                    return node
            elif step not in seen:
                seen.add(step)
                todo.append(step)
    return None


def _learned(scores: ir.Value, shapes: Shapes) -> bool:
    """Whether scores are, but for layout and pointwise operators, a product with weights: a pool, not attention.

    One that mixes heads, behind a product of two computed sides, is none.
    """
    value: ir.Value | None = scores
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("MatMul", "Gemm"):
            inner = next(
                (step for step in node.inputs if step is not None and step.const_value is None), None
            )
            return inner is None or not _directly(inner, shapes)
        if node.op_type not in ABOVE:
            return False
        value = next((step for step in node.inputs if step is not None and step.const_value is None), None)
    return False


def _directly(value: ir.Value, shapes: Shapes) -> bool:
    """Whether a value is a product of two computed sides that only pointwise and layout operators changed."""
    todo, seen = [value], set[ir.Value]()
    own = shapes.of(value) if shapes.known(value) else ()
    while todo:
        node = todo.pop().producer()
        if node is None:
            continue
        if between_activations(node):
            made = node.outputs[0]
            return shapes.known(made) and set(shapes.of(made)[-2:]) <= set(own)
        if node.op_type in ABOVE:
            todo.extend(
                step
                for step in node.inputs
                if step is not None and step.const_value is None and step not in seen
            )
            seen.update(step for step in node.inputs if step is not None)
    return False


def _weighs(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a nonlinear operator stands between two products of computed sides, with layout and pointwise ones only."""
    made = climb(node.inputs[0], shapes)
    if made is None:
        return False
    rows = shapes.of(made[0].outputs[0])[-2:] if shapes.known(made[0].outputs[0]) else ()
    todo = [(node.outputs[0], 0)]
    while todo:
        value, depth = todo.pop()
        for _, product, side in descend(value, shapes):
            weights = product.inputs[side]
            if (
                weights is not None
                and shapes.known(weights)
                and sorted(shapes.of(weights)[-2:]) == sorted(rows)
            ):
                return True
        for reader, _ in value.uses():
            if reader.op_type in ("Div", "Add", "Pow") and depth < 4:
                todo.append((reader.outputs[0], depth + 1))
    return False
