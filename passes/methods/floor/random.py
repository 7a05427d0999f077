"""Random: keep tokens drawn once, at compile time; the control every score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class Random(Method):
    """Keep the protected tokens and a seeded draw of the others, in position order, the same for every input.

    Where some tokens are padding, what is drawn is an order of all, the same for every input: the first K in it that are no
    padding stay. Options: seed; each block draws its own tokens from (seed, block).
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "keep tokens drawn at random when the model is compiled"
    paper: ClassVar[str] = "none: a control"
    reads: ClassVar[tuple[str, ...]] = ("size",)
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("random",)
    drops: ClassVar[bool] = True

    seed: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "seed", self.seed, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        draw = np.random.default_rng([self.seed, site.block]).permutation(site.tokens - site.protect)
        if taps.padded:
            drawn = np.empty((1, site.tokens), np.float32)
            drawn[0, : site.protect], drawn[0, site.protect + draw] = (
                1.0,
                -np.arange(len(draw), dtype=np.float32),
            )
            order = op("Expand", op.constant(drawn), steps.batch_shape(op, taps.tokens, site.tokens))
            return scores.pruned(op, taps, site, order, steps.BY_POSITION)
        chosen = np.sort(draw[: site.keep - site.protect]) + site.protect
        return steps.constantly_pruned(op, taps, site, np.concatenate([np.arange(site.protect), chosen]))
