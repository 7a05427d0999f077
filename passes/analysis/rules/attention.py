"""The ONNX Attention and RotaryEmbedding operators (opset 23 and later)."""

from __future__ import annotations

from tokenrt.passes.analysis.marks import BiasKeys, Mark, ReduceAuxiliary, Step


def attention(step: Step) -> None:
    """Queries give the output's tokens; keys and values must agree; the mask follows both."""
    for index, name in ((4, "past_key"), (5, "past_value")):
        if step.has(index):
            raise step.block(
                f"it reads a key-value cache ({name}); prune the prompt before the cache is built instead"
            )
    if any(output is not None and output.uses() for output in step.node.outputs[1:]):
        raise step.block("its score matrix or cache is used elsewhere")
    query, key, value = (step.mark(index, -2) for index in range(3))
    if (key is None) != (value is None) or (key and value and not key.same(value)):
        raise step.block("keys and values count different tokens", "mixed")
    if step.attribute("is_causal", 0) and not _in_order(step, query, key):
        raise step.block("causal attention depends on the order of all tokens")
    for index in range(3):
        if any(mark.axis != step.rank(index) - 2 for mark in step.marks[index]):
            raise step.block("the token axis is folded into another axis of the attention")
    if step.has(3):
        rank, dims = step.rank(3), step.dims(3)
        meets = [(rank - 2, query), (rank - 1, key)]
        axes = tuple(
            (axis, mark) for axis, mark in meets if mark and mark.stage and axis >= 0 and dims[axis] != 1
        )
        if axes:
            step.edit(ReduceAuxiliary(step.node, 3, axes, "logits"))
    if key and key.stage:
        step.edit(BiasKeys(step.node, key))
    step.set([query.at(len(step.out_dims()) - 2)] if query else [])


def _in_order(step: Step, query: Mark | None, key: Mark | None) -> bool:
    """Whether queries and keys are the same tokens in the model's own order, so that what is left of a lower triangle is one."""
    together = query is not None and key is not None and query.same(key)
    return together and (step.ordered or not (key and key.stage))


def rotary(step: Step) -> None:
    """Tables or position numbers are taken from the position each token stands at."""
    mark = step.mark(0, -2)
    if mark is None or len(step.marks[0]) != 1:
        raise step.block("the token axis is not the second to last")
    for index in (1, 2, 3):
        if not step.has(index) or (index < 3 and step.has(3)):
            continue
        axis = step.rank(index) - (1 if index == 3 else 2)
        if step.dims(index)[axis] != 1 and mark.stage:
            step.edit(ReduceAuxiliary(step.node, index, ((axis, mark),), "place"))
    step.set(step.marks[0])


RULES = {("", "Attention"): attention, ("", "RotaryEmbedding"): rotary}
