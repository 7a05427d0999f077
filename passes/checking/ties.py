"""Near ties inside a reduced model: pictures whose tokens are chosen otherwise because rounding alone decided.

A reduction chooses tokens by scores. Two runs of one picture round otherwise, so where two scores tie they may choose
otherwise, and everything behind differs. Such a picture says nothing of the model. One whose scores differ by more
than rounding is no tie: something else reached them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.checking.check_data import Array
from tokenrt.passes.checking.choices import PREFIX, TELL, Site, site_of
from tokenrt.passes.checking.verdict import apart, scale
from tokenrt.passes.ops import DOMAIN, OPERATORS

Run = Mapping[str, Any]

OWN = f"{PREFIX}own_"
"""Begins the names of the outputs that this module adds."""


@dataclass(frozen=True)
class Choice:
    """An operator that chooses: the outputs that tell what it decides by, and what it decided.

    site: of operators whose scores are told, which of these compete; None for those that search by themselves.
    """

    seen: tuple[str, ...]
    decided: tuple[str, ...]
    site: Site | None


def expose(model: ir.Model) -> tuple[Choice, ...]:
    """Make what the model's reductions see and decide further outputs, in place."""
    return tuple(
        _exposed(model, node, number)
        for number, node in enumerate([*model.graph])
        if node.domain == DOMAIN and node.op_identifier() in model.functions and _integers(node)
    )


def near(
    choices: Sequence[Choice],
    one: Run,
    other: Run,
    places: tuple[int, int],
    sizes: tuple[int, int],
    wide: float,
) -> bool:
    """Whether a picture of two runs is chosen otherwise, and first where what is seen is equal but for rounding.

    places, sizes: the picture's place in either run, and the pictures of each. wide: what rounding may change.
    """
    for choice in choices:
        rows = [
            [
                *zip(
                    *(_picture(run[name], place, size) for name in (*choice.seen, *choice.decided)),
                    strict=False,
                )
            ]
            for run, place, size in zip((one, other), places, sizes, strict=True)
        ]
        other_way = [pair for pair in zip(*rows, strict=False) if _otherwise(choice, *pair)]
        if other_way:
            return all(_tie(choice, first, again, wide) for first, again in other_way)
    return False


def _exposed(model: ir.Model, node: ir.Node, number: int) -> Choice:
    operator = OPERATORS[node.op_type]
    known = node.op_type in TELL
    seen = [
        (name, v)
        for name, v in _named(operator.inputs, node.inputs)
        if v.dtype is None or v.dtype.is_floating_point()
    ]
    made = [*_named(operator.outputs, node.outputs)]
    if known:
        first = TELL[node.op_type][0]
        seen = [(name, value) for name, value in (*seen, *made) if name == first]
    decided = [
        (name, value) for name, value in made if operator.types[operator.outputs.index(name)] == "int64"
    ]
    decided = [(name, value) for name, value in decided if not known or name in TELL[node.op_type]]
    names = [
        tuple(_output(model, value, f"{OWN}{number}_{name}") for name, value in values)
        for values in (seen, decided)
    ]
    return Choice(names[0], names[1], site_of(node) if known else None)


def _output(model: ir.Model, value: ir.Value, name: str) -> str:
    copy = ir.node("Identity", [value], name=name)
    made = copy.outputs[0]
    made.name, made.type, made.shape = name, value.type, value.shape
    model.graph.append(copy)
    model.graph.outputs.append(made)
    return name


def _named(names: Sequence[str], values: Sequence[ir.Value | None]) -> Iterator[tuple[str, ir.Value]]:
    return ((name, value) for name, value in zip(names, values, strict=False) if value is not None)


def _integers(node: ir.Node) -> bool:
    return node.op_type in OPERATORS and "int64" in OPERATORS[node.op_type].types


def _picture(array: Array, place: int, size: int) -> Array:
    """What is the picture's in an array over the batch [B*k,...]: its rows [k,...]; none where the array has no batch."""
    if not array.ndim or len(array) % size:
        return array[:0]
    rows: Array = array.reshape(size, -1, *array.shape[1:])[place]
    return rows


def _otherwise(choice: Choice, one: Sequence[Array], other: Sequence[Array]) -> bool:
    """Another order counts too: a later site knows the tokens by their places."""
    start = len(choice.seen)
    return any(not np.array_equal(*pair) for pair in zip(one[start:], other[start:], strict=True))


def _tie(choice: Choice, one: Sequence[Array], other: Sequence[Array], wide: float) -> bool:
    """Whether what is seen is equal but for rounding, and what only one run chose as near the cut as that allows."""
    seen = [(a, b) for a, b in zip(one, other, strict=True)][: len(choice.seen)]
    if any(a.shape != b.shape or apart(a, b, scale(a)) > wide for a, b in seen):
        return False
    if choice.site is None or not seen:
        return True
    told, tokens = choice.site.rated(seen[0][0])
    again = choice.site.rated(seen[0][1])[0]
    place = {token: index for index, token in enumerate(tokens)}
    start = len(choice.seen)
    chosen = [{place[token] for token in row[start].tolist() if token in place} for row in (one, other)]
    swapped = sorted(chosen[0] ^ chosen[1])
    if not swapped:
        return True
    margins = np.abs(told[swapped] - told[sorted(chosen[0])].min())
    return bool((margins <= 2 * np.abs(told - again).max()).all())
