"""Operators that work entry by entry, with NumPy broadcasting between their inputs."""

from __future__ import annotations

from tokenrt.passes.analysis.marks import Mark, ReduceAuxiliary, Role, Step, spans

STANDARD = (
    "Abs Add And BitShift Cast CastLike Ceil Celu Clip Cos Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mod Mul Neg Not Or PRelu Pow "
    "Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh ThresholdedRelu Where Xor"
).split()
LINEAR = frozenset("Cast CastLike Div Dropout Identity IsNaN Mul Neg Where".split())
ADDED = frozenset("Add And Max Min Or Sub Sum Where Xor".split())
CONTRIB = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")


def elementwise(step: Step) -> None:
    """Marks keep their axis, aligned from the right; an unmarked input as long as the tokens follows them."""
    rank = len(step.out_dims())
    inputs = [index for index in range(len(step.node.inputs)) if step.has(index)]
    shift = {index: rank - step.rank(index) for index in inputs}
    merged = step.merge((mark.axis + shift[index], mark) for index in inputs for mark in step.marks[index])
    proportional(step, inputs)
    for index in inputs:
        auxiliary(step, index, merged, shift[index])
    for output in range(len(step.outputs)):
        step.set(merged, output)


def proportional(step: Step, inputs: list[int]) -> None:
    """Behind a softmax a merged token carries the weight of its members; only what is linear in it may follow."""
    weighed = [index for index in inputs if any(mark.stage and mark.weighed for mark in step.marks[index])]
    kind = step.node.op_type
    if weighed and (
        kind not in LINEAR or (kind == "Mul" and len(weighed) > 1) or (kind == "Div" and 1 in weighed)
    ):
        raise step.block(
            "it is not linear in the softmax over tokens before it, so merged tokens would count as one"
        )


def auxiliary(step: Step, index: int, marks: list[Mark], shift: int) -> None:
    """List the axes of input `index` that hold one entry per original token but are not marked."""
    dims = step.dims(index)
    own = {mark.axis for mark in step.marks[index]}
    axes = tuple(
        (mark.axis - shift, mark)
        for mark in marks
        if mark.stage and mark.axis >= shift and mark.axis - shift not in own and dims[mark.axis - shift] != 1
    )
    if not axes:
        return
    for axis, mark in axes:
        if own:
            raise step.block(f"input {index} counts tokens on one axis only", "mixed")
        if mark.outer != 1 or mark.inner != 1:
            raise step.block(
                f"input {index} meets a token axis that other axes are folded into (axis {axis})"
            )
    pairs = len(spans(marks)) > 1
    if pairs and step.node.op_type not in {*ADDED, "Mul"}:
        raise step.block(
            f"input {index} holds a number per pair of tokens that is neither added nor a factor"
        )
    if any(mark.grid for _, mark in axes) and len(axes) != 2:
        raise step.block(f"input {index} holds one entry per row or column of the token grid")
    features = dims[-1] > 1 and len(dims) - 1 not in {axis for axis, _ in axes}
    scored = step.node.op_type in ADDED and (pairs or _scored(step, axes[0][0] - len(dims)))
    role: Role = "logits" if scored else "place" if features and not pairs else "weight"
    step.edit(ReduceAuxiliary(step.node, index, axes, role))


def _scored(step: Step, axis: int) -> bool:
    """Whether what comes of the node reaches a softmax over this axis (from the end): then its entries are scores of keys."""
    todo = [step.node.outputs[0]]
    while todo:
        value = todo.pop()
        dims = step.shapes.of(value)
        for node, _ in value.uses():
            kind = node.op_type
            if kind == "Softmax":
                given = node.attributes.get("axis")
                if (given.value if given is not None else -1) % len(dims) == len(dims) + axis:
                    return True
            elif (
                (kind in STANDARD or kind == "Reshape")
                and step.shapes.known(node.outputs[0])
                and step.shapes.of(node.outputs[0])[axis:] == dims[axis:]
            ):
                todo.append(node.outputs[0])
    return False


RULES = {("", name): elementwise for name in STANDARD} | {
    ("com.microsoft", name): elementwise for name in CONTRIB
}
