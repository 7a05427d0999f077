"""The batch an engine is built for, and the shapes of its inputs at it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from tokenrt.errors import BuildError, ShapeError

Batch = tuple[int, int, int]
"""Smallest, usual and largest batch of an engine."""

DEFAULT_BATCH: Batch = (1, 8, 8)
"""Range of a dynamic batch when none is asked for."""


def batch_of(model: ir.Model, asked: str | int | Batch | None) -> Batch | None:
    """The batch range of the engine; None for a model whose shapes are all static."""
    wanted = None if asked is None else _read_batch(asked)
    dynamic, fixed = [], {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None:
            raise ShapeError(
                f"input {value.name!r} has no shape; fix it with --shape {value.name}=1x3x224x224"
            )
        for axis, size in enumerate(value.shape):
            if axis and not isinstance(size, int):
                raise ShapeError(
                    f"axis {axis} of input {value.name!r} is dynamic ({size}), and an engine takes a dynamic "
                    f"batch only: fix it when reducing, as in --shape {value.name}={_example(value)}"
                )
        for size in value.shape[:1]:
            if isinstance(size, int):
                fixed[str(value.name)] = size
            else:
                dynamic.append(str(value.name))
    if dynamic:
        return wanted or DEFAULT_BATCH
    if wanted is not None and any(size != only for size in fixed.values() for only in wanted):
        held = ", ".join(f"{name} ({size})" for name, size in fixed.items())
        raise BuildError(
            f"batch {':'.join(map(str, wanted))} was asked for, but the model's batch is fixed: {held}; "
            "leave --batch out, or export with a dynamic batch"
        )
    return None


def shapes_of(model: ir.Model, batch: Batch | None) -> Mapping[str, tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest shape of every input; none for a model whose shapes are all static."""
    if batch is None:
        return {}
    return {
        str(value.name): tuple((size, *_rest(value)) for size in batch)
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }


def _rest(value: ir.Value) -> tuple[int, ...]:
    return tuple(size for size in list(value.shape or ())[1:] if isinstance(size, int))


def _read_batch(asked: str | int | Batch) -> Batch:
    parts = [asked] if isinstance(asked, int) else asked.split(":") if isinstance(asked, str) else list(asked)
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise BuildError(
            f"batch {asked!r}: expected a number or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, as 1:4:8"
        )
    return numbers[0], numbers[1], numbers[2]


def _example(value: ir.Value) -> str:
    sizes = value.shape or ()
    return "x".join(
        "B" if not axis else str(size) if isinstance(size, int) else "128" for axis, size in enumerate(sizes)
    )
