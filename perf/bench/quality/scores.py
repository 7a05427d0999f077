"""What pictures score, and how sure it is that one score is above another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenrt.perf.demo.subject import Array

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
        """The 95 % interval of the difference to another score of the same pictures: its center over pictures.

        Bootstrap: pictures are drawn again, the same for both, and so are the draws of each, whose mean counts.
        """
        random, count = np.random.default_rng(0), self.each.shape[1]
        apart = self._again(random) - other._again(random)
        pictures = random.integers(count, size=apart.shape)
        centers = CENTERS[self.center](np.take_along_axis(apart, pictures, axis=1), axis=1)
        low, high = np.quantile(centers, INTERVAL)
        return float(low), float(high)

    def _again(self, random: np.random.Generator) -> Array:
        """What each picture scores on average over draws that are drawn again: [RESAMPLES,n]."""
        draws = len(self.each)
        counts = random.multinomial(draws, np.full(draws, 1 / draws), size=RESAMPLES)
        return np.asarray(counts / draws @ self.each)
