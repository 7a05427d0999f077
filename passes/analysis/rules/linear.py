"""Matrix products: weights, attention scores, and attention times values."""

from __future__ import annotations

from tokenrt.passes.analysis.marks import Mark, Step


def matmul(step: Step) -> None:
    """[..,N,C] x [C,D] keeps N; [..,N,D] x [..,D,N] has it twice; [..,N,N] x [..,N,D] contracts one."""
    left, right = step.rank(0), step.rank(1)
    rank = max(left, right)
    if left < 2 or right < 2:
        raise step.block("a product with a vector along the token axis is not supported")
    inner_left, inner_right = step.mark(0, -1), step.mark(1, -2)
    if (inner_left is None) != (inner_right is None):
        raise step.block("it multiplies the token axis by weights of that length (token mixing)")
    if inner_left and inner_right and not (inner_left.plain and inner_right.plain):
        raise step.block("it sums over more or less than the tokens of one picture", "grid")
    if inner_left and inner_right and not inner_left.same(inner_right):
        raise step.block("the token counts of its two inputs differ", "mixed")
    if inner_left and inner_right and inner_left.stage and not (inner_left.weighed or inner_right.weighed):
        raise step.block("it sums over tokens without a softmax, so no size would count")
    pairs: list[tuple[int, Mark]] = []
    for index, own, last in ((0, left, left - 1), (1, right, right - 2)):
        for mark in step.marks[index]:
            if mark.axis != last:
                pairs.append((mark.axis + rank - own, mark))
    merged = step.merge(pairs)
    for index, own in ((0, left), (1, right)):
        marked = {mark.axis + rank - own for mark in step.marks[index]}
        for mark in merged:
            axis = mark.axis - (rank - own)
            if mark.axis < rank - 2 and axis >= 0 and mark.axis not in marked and step.dims(index)[axis] != 1:
                raise step.block("one matrix per token on one side only")
    step.set(merged)


def gemm(step: Step) -> None:
    """Rows of the first input may be tokens; its bias must not depend on the row."""
    rows = 1 if step.attribute("transA", 0) else 0
    row, column = step.mark(0, rows), step.mark(0, 1 - rows)
    if column or step.marks[1] or row is None:
        raise step.block("it multiplies the token axis by weights of that length (token mixing)")
    if step.has(2) and step.rank(2) == 2 and step.dims(2)[0] != 1:
        raise step.block("its bias has one row per token")
    step.set([row.at(0)])


RULES = {("", "MatMul"): matmul, ("com.microsoft", "FusedMatMul"): matmul, ("", "Gemm"): gemm}
