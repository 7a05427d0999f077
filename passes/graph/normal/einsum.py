"""Einsum of two operands as Transpose, Reshape and MatMul; of one as Transpose.

A letter is batch (in both operands and the result), row or column (in one and the result) or contracted (in both, not
in the result). Any other equation stays: an operand that is summed alone, a diagonal, three operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def open_einsum(build: Builder, node: ir.Node) -> bool:
    """Replace one Einsum; whether its equation is one of those that can be."""
    operands = [value for value in node.inputs if value is not None]
    if not all(build.known(value) for value in (*operands, *node.outputs)):
        return False
    parsed = parse(str(node.attributes["equation"].value), [len(build.dims(value)) for value in operands])
    if parsed is None or not _fits(build, operands, parsed[0]):
        return False
    terms, result = parsed
    if len(operands) == 1:
        made = build.transpose(operands[0], [terms[0].index(letter) for letter in result])
    else:
        made = _product(build, node, operands, terms, result)
    build.replace(node.outputs[0], made)
    build.graph.remove(node, safe=True)
    return True


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the result, an ellipsis spelt out; None for an equation of another kind."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks) or len(terms) > 2:
        return None
    spare = [letter for letter in LETTERS if letter not in equation]
    hidden = max(
        (rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)), default=0
    )
    dots = "".join(spare[:hidden])
    if not arrow:
        letters = sorted(set(left) - set(",."))
        result = "..." * ("..." in left) + "".join(letter for letter in letters if left.count(letter) == 1)
    terms = [
        term.replace("...", dots[len(dots) - (rank - len(term.replace("...", ""))) :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    result = result.replace("...", dots)
    whole = all(len(term) == rank == len(set(term)) for term, rank in zip(terms, ranks, strict=True))
    alone = any(
        letter not in result and sum(letter in term for term in terms) == 1
        for term in terms
        for letter in term
    )
    if not whole or alone or len(set(result)) != len(result) or set(result) - set("".join(terms)):
        return None
    return terms, result


def _fits(build: Builder, operands: Sequence[ir.Value], terms: Sequence[str]) -> bool:
    """Whether a letter has one length everywhere: an axis of 1 that broadcasts has not."""
    lengths: dict[str, int] = {}
    pairs = [
        pair
        for value, term in zip(operands, terms, strict=True)
        for pair in zip(term, build.dims(value), strict=True)
    ]
    return all(lengths.setdefault(letter, size) == size for letter, size in pairs)


def _product(
    build: Builder, node: ir.Node, operands: list[ir.Value], terms: list[str], result: str
) -> ir.Value:
    """Rows come from the operand whose own letters stand first in the result."""
    own = [[letter for letter in result if letter in a and letter not in b] for a, b in (terms, terms[::-1])]
    if own[1] and (not own[0] or result.index(own[1][0]) < result.index(own[0][0])):
        operands, terms, own = operands[::-1], terms[::-1], own[::-1]
    sizes = {
        letter: size
        for value, term in zip(operands, terms, strict=True)
        for letter, size in zip(term, build.dims(value), strict=True)
    }
    batch = [letter for letter in result if letter in terms[0] and letter in terms[1]]
    summed = [letter for letter in terms[0] if letter in terms[1] and letter not in result]
    rows, columns = own
    # Without batch letters MatMul takes any number of row axes, so that none need be folded.
    lead = rows if not batch and rows else batch
    left_rows = [] if lead is rows else [rows]
    left = _grouped(build, operands[0], terms[0], lead, [*left_rows, summed])
    right = _grouped(build, operands[1], terms[1], batch, [summed, columns])
    wide = [prod(sizes[letter] for letter in group) for group in (*left_rows, columns)]
    product = build.make([*(sizes[letter] for letter in lead), *wide], "MatMul", left, right)
    maker = product.producer()
    assert maker is not None
    maker.name = node.name or maker.name
    maker.metadata_props.update(node.metadata_props)
    order = [*lead, *(letter for group in left_rows for letter in group), *columns]
    split = build.reshape(product, [sizes[letter] for letter in order])
    return build.transpose(split, [order.index(letter) for letter in result])


def _grouped(
    build: Builder, value: ir.Value, term: str, lead: Sequence[str], groups: Sequence[Sequence[str]]
) -> ir.Value:
    """The operand with the letters of `lead` in front, each an axis, and one axis for each group."""
    order = [*lead, *(letter for group in groups for letter in group)]
    dims = dict(zip(term, build.dims(value), strict=True))
    turned = build.transpose(value, [term.index(letter) for letter in order])
    return build.reshape(
        turned,
        [*(dims[letter] for letter in lead), *(prod(dims[letter] for letter in group) for group in groups)],
    )
