"""Random: keep tokens drawn once, at compile time; the control every score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import steps


@dataclass(frozen=True)
class Random(Method):
    """Keep the protected tokens and a seeded draw of the others, in position order, the same for every input.

    Options: seed; each block draws its own tokens from (seed, block).
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "keep tokens drawn at random when the model is compiled"
    paper: ClassVar[str] = "none: a control"
    reads: ClassVar[tuple[str, ...]] = ()
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("random",)
    drops: ClassVar[bool] = True

    seed: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "seed", self.seed, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        draw = np.random.default_rng([self.seed, site.block]).permutation(site.tokens - site.protect)
        chosen = np.sort(draw[: site.keep - site.protect]) + site.protect
        return steps.constantly_pruned(op, taps, site, np.concatenate([np.arange(site.protect), chosen]))
