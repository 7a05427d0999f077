"""How far the outputs of two models lie apart, by output, over all samples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tokenrt.passes.checking import choices
from tokenrt.passes.checking.check_data import Array, quiet
from tokenrt.passes.checking.shortened import NOTHING, Dims, aligned


@dataclass(frozen=True)
class Drift:
    """How far one output of the reduced model is from the original's. None where a number says nothing.

    Cosines are per sample, one row of the batch each; relative L2 and the largest difference are over all of
    them; agreement is the share of samples with the same largest class, for outputs [B, classes].
    """

    output: str
    shape: Dims
    samples: int
    finite: bool
    static: bool
    cosine_min: float | None
    cosine_mean: float | None
    relative_l2: float | None
    max_abs: float | None
    agreement: float | None
    cosines: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cosines"} | {
            "shape": list(self.shape)
        }


@dataclass(frozen=True)
class Sample:
    """One output of one run of two models, as Polygraphy gathers it; true when it may be compared."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    finite: bool
    cosines: tuple[float, ...] = ()
    difference: float = 0.0
    norm: float = 0.0
    max_abs: float = 0.0
    agreeing: int | None = None

    def __bool__(self) -> bool:
        return self.finite and self.shapes[0] == self.shapes[1]


def compare(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], told: Mapping[str, str] = NOTHING
) -> OrderedDict[str, Sample]:
    """A Polygraphy compare function: every output of two runs, measured and not judged.

    difference and norm are squared sums; cosines are one for each index of the first axis. told: see `aligned`.
    """
    reference = aligned(reference, candidate, told)
    return OrderedDict(
        (name, _sample(np.asarray(reference[name]), np.asarray(candidate[name])))
        for name in reference
        if name in candidate and not name.startswith(choices.PREFIX)
    )


def _sample(reference: Array, candidate: Array) -> Sample:
    shapes = reference.shape, candidate.shape
    finite = bool(np.isfinite(_wide(candidate)).all())
    if shapes[0] != shapes[1] or not candidate.size:
        return Sample(shapes, finite)
    a, b = _wide(reference), _wide(candidate)
    rows = a.reshape(len(a), -1) if a.ndim else a.reshape(1, 1)
    others = b.reshape(rows.shape)
    with np.errstate(all="ignore"):
        products = (rows * others).sum(1)
        lengths = np.sqrt((rows**2).sum(1) * (others**2).sum(1))
        equal = (rows == others).all(1)
        cosines = np.where(lengths > 0, np.clip(products / lengths, -1, 1), equal)
        difference = rows - others
    agreeing = None
    if a.ndim == 2 and a.shape[1] > 1 and reference.dtype.kind == "f":
        agreeing = int((rows.argmax(1) == others.argmax(1)).sum())
    return Sample(
        shapes,
        finite,
        tuple(map(float, cosines)),
        float((difference**2).sum()),
        float((rows**2).sum()),
        float(np.abs(difference).max()),
        agreeing,
    )


def compared(
    results: Any, first: int, second: int, told: Mapping[str, str] = NOTHING
) -> dict[str, list[Sample]]:
    """Samples by output, one for each run, of two of the models."""
    from polygraphy.comparator import Comparator

    with quiet():
        (accuracy,) = Comparator.compare_accuracy(
            results, comparisons=[(first, second)], compare_func=partial(compare, told=told)
        )
    ((_, runs),) = accuracy.items()
    return {name: [run[name] for run in runs] for name in runs[0]}


def drifts(
    results: Any,
    declared: tuple[dict[str, Dims], dict[str, Dims]],
    batches: Sequence[int],
    random: Container[str] = (),
    told: Mapping[str, str] = NOTHING,
) -> tuple[list[Drift], list[str]]:
    """The drift of every output that both models have, and what rules one out; the original runs first.

    random: outputs that differ from run to run, which are not compared. told: see `aligned`.
    """
    made, reasons = [], []
    for name, found in compared(results, 0, 1, told).items():
        before, after = (side[name] for side in declared)
        finite = all(sample.finite for sample in found)
        static = all(isinstance(size, int) for size in after[1:])
        other = next((sample.shapes for sample in found if sample.shapes[0] != sample.shapes[1]), None)
        if other:
            reasons.append(f"output {name!r}: shape {list(other[1])}, the original gives {list(other[0])}")
        if not finite:
            reasons.append(f"output {name!r}: not all values of the reduced model are finite")
        lost = [axis for axis, size in enumerate(before) if axis and isinstance(size, int) and not static]
        if lost:
            shape = ",".join(map(str, after))
            reasons.append(f"output {name!r}: its shape [{shape}] is not static in the reduced model")
        comparable = finite and not other and name not in random
        made.append(_drift(name, found, after, finite, static, comparable=comparable))
    return made, reasons


def _drift(
    name: str, found: Sequence[Sample], shape: Dims, finite: bool, static: bool, *, comparable: bool
) -> Drift:
    cosines = [value for sample in found for value in sample.cosines]
    if not comparable or not cosines or not np.isfinite(cosines).all():
        return Drift(name, shape, len(cosines), finite, static, None, None, None, None, None)
    agreeing = [sample.agreeing for sample in found if sample.agreeing is not None]
    return Drift(
        name,
        shape,
        len(cosines),
        finite,
        static,
        min(cosines),
        float(np.mean(cosines)),
        number(distance(found)),
        max(sample.max_abs for sample in found),
        sum(agreeing) / len(cosines) if agreeing else None,
        tuple(cosines),
    )


def distance(found: Sequence[Sample]) -> float:
    """Relative L2 over all runs of one output."""
    difference, norm = sum(sample.difference for sample in found), sum(sample.norm for sample in found)
    if not norm:
        return 0.0 if not difference else float("inf")
    return float(np.sqrt(difference / norm))


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


def number(value: float) -> float | None:
    """The value, or None where it says nothing."""
    return value if np.isfinite(value) else None
