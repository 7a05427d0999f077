"""Removals that lie over the blocks in a simple shape: few numbers, so that what fits the data at hand fits other data too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenrt.perf.tune.improve import Leaving, Mixture

EARLY = 1 / 3
"""The share of the blocks in which the early method is at work."""


@dataclass(frozen=True)
class Shape:
    """Where tokens leave, how many there against the other places, and by what.

    early, late: the methods of the first third of the blocks and of the others. first, behind: the first block, and the one
    behind the last. stride: from one site to the next. fall: 0 where every site removes the same, 1 where removals fall along a
    line to none, above it where most leave at once. proportional: attention counts sizes.
    """

    early: str
    late: str
    first: int
    behind: int
    stride: int
    fall: float
    proportional: bool

    def __str__(self) -> str:
        names = self.early if self.early == self.late else f"{self.early}, then {self.late}"
        last = range(self.first, self.behind, self.stride)[-1]
        every = "" if last == self.first else f" to {last}"
        every += f", every {self.stride}" if self.stride > 1 and every else ""
        sizes = "" if self.proportional else ", attention without sizes"
        return f"{names}, block {self.first}{every}, fall {self.fall:g}{sizes}"

    def mixture(self, tokens: int, blocks: int) -> Mixture:
        """The removals, half of the tokens in all."""
        places = range(self.first, self.behind, self.stride)
        weights = [(1 - place / len(places)) ** self.fall for place in range(len(places))]
        names = [self.early if block < EARLY * blocks else self.late for block in places]
        steps = (
            Leaving(block, tokens / 2 * weight / sum(weights), name)
            for block, weight, name in zip(places, weights, names, strict=True)
        )
        return Mixture(tuple(steps), self.proportional)


def spectrum(blocks: int, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """What the numbers and methods of a shape may be, those that matter most first."""
    return {
        "stride": sorted({1, 2, 3, blocks // 2, blocks}),
        "fall": (0.0, 0.5, 1.0, 2.0, 4.0),
        "early": names,
        "late": names,
        "proportional": (True, False),
        "first": sorted({0, 1, 2, blocks // 4}),
        "behind": sorted({blocks, blocks - blocks // 6, blocks - blocks // 3, blocks // 2}),
    }
