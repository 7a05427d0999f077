"""RAS: regions of a latent picture that the last step's noise left unsettled are computed, the others rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import (
    Evidence,
    Home,
    Method,
    Ops,
    Reduction,
    Returns,
    Site,
    Taps,
    Value,
    beyond,
)
from tokenrt.passes.methods.parts import bipartite, clusters, pooling, scores, steps

STD, LENGTH = "std", "l2norm"
RESTED = "rested"


@dataclass(frozen=True)
class RAS(Method):
    """Rank the patches by m exp(gamma c) and let R rest: the lowest floor(R (1 - high)) and the highest floor(R high).

    m is the standard deviation over the U channels of what the step before added to the latent picture (the input update
    [B,U,h,w], step size times model output), or its length, averaged over the latents of a patch; c says how often a patch has
    rested: the state rested [B,N] is an input and an output, and counts one more for each patch that rests. The others are
    active: they go through the model, and the rest takes last step's noise, keys and values: inputs past_* and outputs present_*.
    R = N - K. high is 1 as released, where the paper lets the lowest rest too; rounding both parts down may let one patch fewer
    rest, and then this refuses with the count that fits.
    Packed latents, update [B,N,U]: a row for each patch, of U/L channels times L latents, as in Flux, where L is 4.
    Options: metric: std or l2norm; high; gamma, against starvation; order: position, or score, ascending as released; latents: L.
    """

    name: ClassVar[str] = "ras"
    summary: ClassVar[str] = "compute the regions that the last step left unsettled, let the others rest"
    paper: ClassVar[str] = "Liu et al., Region-Adaptive Sampling for Diffusion Transformers, arXiv 2502.10389"
    reads: ClassVar[tuple[str, ...]] = ("update", "state")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("update",)
    ascending: ClassVar[bool] = True
    home: ClassVar[Home] = "step"
    returns: ClassVar[Returns] = "from-last-step"
    carries: ClassVar[tuple[str, ...]] = (RESTED,)
    systems: ClassVar[tuple[str, ...]] = ("RAS",)

    metric: str = STD
    high: float = 1.0
    gamma: float = 0.1
    order: str = steps.BY_POSITION
    latents: int = 4

    def __post_init__(self) -> None:
        steps.choice(self.name, "metric", self.metric, (STD, LENGTH))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.at_least(self.name, "latents", self.latents, 1)
        if not 0 <= self.high <= 1:
            raise MethodError(f"option high={self.high} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        low, high = self._resting(site)
        rested = taps.state.get(RESTED, scores.filled(op, taps.tokens, 0.0, site.tokens))
        settled = op("Exp", op("Mul", steps.free(op, rested, site), self.gamma))
        unsettled = scores.numbers(op, op("Mul", self._metric(op, taps, site), settled))
        rank = scores.behind_protected(op, unsettled, site)
        there = scores.present(op, taps)
        if there is not None:
            rank = op("Where", op("Greater", there, 0.0), rank, scores.ALWAYS if high else -1.0)
        free = site.tokens - site.protect
        falling = op(
            "TokenSelect",
            steps.free(op, rank, site),
            keep=free,
            protect=0,
            order=steps.ORDERS[steps.BY_SCORE],
        )
        active = steps.cut(op, falling, high, free - low)
        if self.order == steps.BY_POSITION:
            active = bipartite.ascending(op, active, clusters.outputs(site))
        else:
            active = op("Gather", active, np.arange(free - low - high - 1, -1, -1), axis=1)
        made = steps.pruned(op, taps, site, clusters.whole(op, taps, site, active))
        once = op("Cast", op("Less", made.assign, np.array(0)), to=steps.FLOAT)
        return replace(made, state={RESTED: op("Add", rested, once)})

    def _resting(self, site: Site) -> tuple[int, int]:
        """How many of the lowest and of the highest rest. Raises: PlanError."""
        for skipped in (site.removed, site.removed + 1):
            parts = int(skipped * (1 - self.high)), int(skipped * self.high)
            if sum(parts) == site.removed:
                return parts
        raise PlanError(
            f"{self.name}: with high={self.high} no number of patches to rest leaves {site.keep} of {site.tokens}, both parts "
            f"rounded down; {site.keep + 1} can stay"
        )

    def _metric(self, op: Ops, taps: Taps, site: Site) -> Value:
        """What the step before left unsettled in each patch: [B,T]."""
        update = beyond(taps, "update")
        if site.packed:
            if site.packed % self.latents:
                raise MethodError(
                    f"{self.name}: rows of {site.packed} numbers are not channels of {self.latents} latents; say how many a row "
                    "holds with --set latents=L"
                )
            shape = np.array([0, site.tokens, site.packed // self.latents, self.latents])
            each = self._unsettled(op, op("Reshape", update, shape), 2)
            return steps.free(op, op("ReduceMean", each, axes=[2], keepdims=0), site)
        frames, rows, columns = pooling.grids(self, site)
        if frames != 1:
            raise steps.no_grid(self.name, site)
        high, wide = site.picture or (rows, columns)
        if high % rows or wide % columns:
            raise MethodError(
                f"{self.name}: the update of {high} x {wide} latents is not whole patches of a grid of {rows} x {columns}"
            )
        each = self._unsettled(op, update, 1)
        shape = op("Shape", each)
        down, across = (op("Slice", shape, np.array([axis]), np.array([axis + 1])) for axis in (1, 2))
        cells = [np.array([-1, rows]), op("Div", down, np.array([rows])), np.array([columns])]
        split = op("Reshape", each, op("Concat", *cells, op("Div", across, np.array([columns])), axis=0))
        mean = op("ReduceMean", split, axes=[2, 4], keepdims=0)
        return op("Reshape", mean, np.array([-1, rows * columns]))

    def _unsettled(self, op: Ops, update: Value, axis: int) -> Value:
        """The standard deviation over the channels, which lie on this axis, or their length."""
        if self.metric == LENGTH:
            return op("Sqrt", op("ReduceSum", op("Mul", update, update), np.array([axis]), keepdims=0))
        centred = op("Sub", update, op("ReduceMean", update, axes=[axis], keepdims=1))
        square = op("ReduceSum", op("Mul", centred, centred), np.array([axis]), keepdims=0)
        channels = op("Slice", op("Shape", update), np.array([axis]), np.array([axis + 1]))
        spare = op("Sub", op("Cast", channels, to=steps.FLOAT), 1.0)
        return op("Sqrt", op("Div", square, op("Max", spare, 1.0)))
