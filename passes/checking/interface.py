"""The doors of two models: names, order, types and shapes of their inputs and outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from tokenrt.errors import ModelError
from tokenrt.passes.checking.emulate import FLOATS
from tokenrt.passes.checking.shortened import Dims, shorter
from tokenrt.passes.checking.verdict import FAILED, HELD, Property
from tokenrt.passes.graph.interface import CHOSEN, GONE, KEPT, MAP, PRESENT, SALIENT, is_gained

NAME = "interface"

ASKED_FOR = re.compile(rf"({MAP}|{KEPT}|{CHOSEN}|{SALIENT}|{PRESENT}[a-z]+)(_layer\d+)?(_\d+)?")
"""Outputs that `reduce` adds: with --source-map, and where an output has only the tokens or entries that are left."""


def inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def declared(model: ir.Model) -> dict[str, Dims]:
    """Shapes of the outputs as the model declares them, or as inference finds them."""
    from onnx_ir.passes.common import ShapeInferencePass

    if not all(_settled(value) for value in model.graph.outputs):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return {
        str(value.name): tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
        for value in model.graph.outputs
    }


def told_apart(before: ir.Model, after: ir.Model) -> Property:
    """Whether the reduced model has the original's inputs and outputs.

    A float type may be another one (a half form), and a size that one of them leaves open may be fixed in the other.

    Raises: ModelError where the reduced model has other inputs, or no output is common: nothing can be compared then.
    """
    faults: list[str] = []
    gone = after.metadata_props.get(GONE, "").split(",")
    for what, pair in (
        ("input", (inputs(before), inputs(after))),
        ("output", ([*before.graph.outputs], [*after.graph.outputs])),
    ):
        names = [[str(value.name) for value in values if value.name not in gone] for values in pair]
        common = set(names[0]) & set(names[1])
        if (not common and any(names)) or (
            what == "input" and not all(name in common or is_gained(name) for name in names[1])
        ):
            raise ModelError(_foreign(what, *names))
        faults += [
            *_listed(what, *names),
            *_ordered(what, *([n for n in each if n in common] for each in names)),
        ]
        faults += _typed(what, *pair)
        if what == "output":
            told = any(ASKED_FOR.fullmatch(name) for name in set(names[1]) - common)
            faults += _shaped(declared(before), declared(after), told)
    if faults:
        return Property(NAME, FAILED, None, None, "; ".join(faults))
    counts = f"{len(inputs(before))} inputs and {len(before.graph.outputs)} outputs"
    return Property(NAME, HELD, None, None, f"{counts} have the original's names, order, types and shapes")


def once(model: ir.Model) -> bool:
    """List every output of the model once, in place; whether any was listed again."""
    outputs = model.graph.outputs
    first = {str(value.name): value for value in reversed([*outputs])}
    names = dict.fromkeys(str(value.name) for value in outputs)
    if len(names) == len(outputs):
        return False
    outputs[:] = [first[name] for name in names]
    return True


def _foreign(what: str, before: Sequence[str], after: Sequence[str]) -> str:
    return (
        f"the {what}s of the two models differ: {', '.join(sorted(set(before)))} in the original, "
        f"{', '.join(sorted(set(after)))} in the reduced model; compare models made from one another"
    )


def _listed(what: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    wanted, found = Counter(before), Counter(after)
    for name in wanted.keys() - found.keys():
        yield f"{what} {name!r} of the original is missing in the reduced model"
    for name, count in found.items():
        if name in wanted and count > wanted[name]:
            yield f"{what} {name!r} is listed {count} times in the reduced model, the original lists it {wanted[name]}"
        elif name not in wanted and not (ASKED_FOR.fullmatch(name) if what == "output" else is_gained(name)):
            yield f"{what} {name!r} of the reduced model is none of the original's"


def _ordered(what: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    left, right = [*dict.fromkeys(before)], [*dict.fromkeys(after)]
    if left != right:
        yield f"the {what}s stand in the order {', '.join(right)}, in the original {', '.join(left)}"


def _typed(what: str, before: Sequence[ir.Value], after: Sequence[ir.Value]) -> Iterator[str]:
    wanted = {value.name: value.dtype for value in before}
    for value in {value.name: value for value in after}.values():
        kinds = wanted.get(value.name), value.dtype
        if None not in kinds and kinds[0] != kinds[1] and not FLOATS.issuperset(kinds):
            yield f"{what} {value.name!r} is {kinds[1]} in the reduced model, {kinds[0]} in the original"


def _shaped(before: Mapping[str, Dims], after: Mapping[str, Dims], told: bool) -> Iterator[str]:
    """told: the reduced model says which rows are left where an output has fewer."""
    for name in [name for name in before if name in after]:
        left, right = before[name], after[name]
        if told and shorter(left, right):
            continue
        pairs = zip(left, right, strict=False)
        other = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if left and right and (other or len(left) != len(right)):
            yield f"output {name!r} is {_text(right)} in the reduced model, {_text(left)} in the original"


def _text(dims: Dims) -> str:
    return f"[{','.join(map(str, dims))}]"


def _settled(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape[1:])
