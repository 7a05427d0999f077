"""How far a reduced model's outputs lie from the original's, each measured as what it is, image by image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Array
from tokenrt.passes.checking.shortened import aligned
from tokenrt.perf.planner.workbench import Answer

Kind = Literal["logits", "embedding", "dense"]
LOGITS = re.compile(r"logit|prob|class|score", re.IGNORECASE)
"""Names of outputs [B,K] that are scores of classes."""

MEASURES: Mapping[Kind, str] = {
    "logits": "KL divergence of the classes' probabilities from the original's, in nats",
    "embedding": "1 - cosine with the original's",
    "dense": "L2 distance from the original's, relative to its length",
}

DRAWS, INSIDE = 2000, 0.95
"""Draws of images with replacement, and the share of them that an interval holds."""

SURE = 2.0
"""Standard errors of a difference, image by image, from which on one harms surely less than another."""


@dataclass(frozen=True)
class Harm:
    """For each output a number for each image, 0 where nothing changed; larger is worse, and infinite what is not finite."""

    outputs: Mapping[str, tuple[float, ...]]

    @property
    def images(self) -> tuple[float, ...]:
        """For each image that of its worst output."""
        return tuple(map(max, zip(*self.outputs.values(), strict=True)))

    @property
    def mean(self) -> float:
        """Over the images, of the worst output."""
        return float(np.mean(self.images))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """Between which the mean lies when other images of the kind had been drawn."""
        images = np.array(self.images)
        if len(images) < 2 or not np.isfinite(images).all():
            return self.mean, self.mean
        draws = np.random.default_rng(seed).integers(0, len(images), (DRAWS, len(images)))
        low, high = np.quantile(images[draws].mean(axis=1), [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
        return float(low), float(high)

    def surely_less(self, other: Harm) -> bool:
        """Whether this is less on these images by more than chance would have it, compared image by image."""
        gap = np.array(other.images) - np.array(self.images)
        if len(gap) < 2 or not np.isfinite(gap).all():
            return False
        return bool(gap.mean() > SURE * gap.std(ddof=1) / np.sqrt(len(gap)))


def kind_of(name: str, answer: Array) -> Kind:
    """What an output is: [B,K] named after classes or summing up to 1, another [B,K], or anything with more axes."""
    if answer.ndim != 2:
        return "dense"
    sums = bool((answer >= 0).all() and np.allclose(answer.sum(1), 1, atol=1e-3))
    return "logits" if LOGITS.search(name) or sums else "embedding"


def check_finite(answers: Sequence[Answer]) -> None:
    """Whether what is compared with is numbers. Raises: TokenrtError naming the output and the run."""
    for number, answer in enumerate(answers):
        for name, array in answer.items():
            if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float32)).all():
                raise TokenrtError(
                    f"the unreduced model gives values of output {name!r} that are not finite for batch {number} of the data: "
                    "nothing can be compared with them; look at that data, or at the model's precision"
                )


def harm(original: Sequence[Answer], reduced: Sequence[Answer]) -> Harm:
    """Compare run by run. Outputs of integers, and those that only one of the two has, say nothing.

    Raises: TokenrtError where nothing can be compared.
    """
    kinds = {name: kind_of(name, array) for name, array in original[0].items()} if original else {}
    found: dict[str, list[float]] = {}
    for before, after in zip(original, reduced, strict=True):
        before = aligned(before, after)
        for name, array in before.items():
            if name in after and array.dtype.kind == "f" and array.ndim and array.shape == after[name].shape:
                found.setdefault(name, []).extend(_each(kinds[name], array, after[name]))
    if not found:
        raise TokenrtError(
            "the two models share no output of numbers of the same shape, so that harm has no measure"
        )
    return Harm({name: tuple(values) for name, values in found.items()})


def _each(kind: Kind, before: Array, after: Array) -> list[float]:
    """A number for each index of the first axis."""
    a = before.astype(np.float64).reshape(len(before), -1)
    b = after.astype(np.float64).reshape(a.shape)
    with np.errstate(all="ignore"):
        values = _MEASURE[kind](a, b)
    return [float(value) if np.isfinite(value) else float("inf") for value in values]


def _divergence(a: Array, b: Array) -> Array:
    p, q = _logarithms(a), _logarithms(b)
    total: Array = (np.exp(p) * (p - q)).sum(1)
    return np.maximum(total, 0)


def _logarithms(rows: Array) -> Array:
    """Logarithms of probabilities; of logits, those of their softmax."""
    if (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(rows, 1e-12)))
    shifted = rows - rows.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _angle(a: Array, b: Array) -> Array:
    lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    cosines = np.where(lengths > 0, (a * b).sum(1) / lengths, (a == b).all(1))
    return np.asarray(np.maximum(1 - cosines, 0))


def _distance(a: Array, b: Array) -> Array:
    length, gap = np.sqrt((a**2).sum(1)), np.sqrt(((a - b) ** 2).sum(1))
    return np.asarray(np.where(length > 0, gap / length, np.where(gap > 0, np.inf, 0)))


_MEASURE = {"logits": _divergence, "embedding": _angle, "dense": _distance}
