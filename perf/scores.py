"""What pictures score, and how sure it is that one score is above another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenrt.perf.subject import Array

RESAMPLES = 2000
INTERVAL = (0.025, 0.975)

CENTERS: Mapping[str, Callable[..., Array]] = {"mean": np.mean, "median": np.median}
"""What sums up the pictures."""


@dataclass(frozen=True)
class Score:
    """each: [D,n], what n pictures score in each of D draws of the same method. center: a key of CENTERS."""

    each: Array
    center: str = "mean"

    @cached_property
    def value(self) -> float:
        """The center over pictures, as a mean over draws."""
        return float(CENTERS[self.center](self.each, axis=1).mean())

    def above(self, other: Score) -> tuple[float, float]:
        """The 95 % interval of this score less the other, both of the same pictures.

        Bootstrap: pictures are drawn again, the same for both, and so are the draws of each.
        """
        random, count = np.random.default_rng(0), self.each.shape[1]
        pictures = random.integers(count, size=(RESAMPLES, count))
        apart = self._again(pictures, random) - other._again(pictures, random)
        low, high = np.quantile(apart, INTERVAL)
        return float(low), float(high)

    def _again(self, pictures: Array, random: np.random.Generator) -> Array:
        centers = CENTERS[self.center](self.each[:, pictures], axis=2)
        draws = random.integers(len(centers), size=(len(centers), RESAMPLES))
        return np.asarray(np.take_along_axis(centers, draws, axis=0).mean(axis=0))
