"""Methods with one thing changed, for the experiments: their scores drawn, or what they drop merged."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import centers, clusters, scores, steps


class _Drawn:
    """Operators of which the first that chooses among all tokens gets drawn numbers for a score."""

    def __init__(self, op: Ops, site: Site, padded: bool, seed: int) -> None:
        self.op, self.site, self.padded, self.seed, self.done = op, site, padded, seed, False

    def __call__(self, name: str, *inputs: Value, **attributes: Any) -> Any:
        if name == "TokenSelect" and not self.done:
            self.done = True
            inputs = (self._numbers(inputs[0], attributes["protect"]),)
        return self.op(name, *inputs, **attributes)

    def constant(self, array: Any) -> Value:
        return self.op.constant(array)

    def _numbers(self, score: Value, protect: int) -> Value:
        """In place of a score [B,N], or [B,N-P], drawn when the model is compiled: the same for every input, but for padding."""
        count = self.site.tokens - self.site.protect + protect
        numbers = np.random.default_rng([self.seed, self.site.block]).random((1, count)).astype(np.float32)
        nothing = self.op("Mul", self.op("Where", self.op("IsNaN", score), 0.0, score), 0.0)
        drawn = self.op("Add", nothing, numbers)
        return (
            self.op("Where", self.op("Greater", score, steps.LOWEST), drawn, score) if self.padded else drawn
        )


def drawn(name: str, seed: int = 0) -> type[Method]:
    """The method called `name` with drawn numbers for a score, under the name `name-drawn`."""
    base = methods.get(name)

    def reduce(self: Method, op: Ops, taps: Taps, site: Site) -> Reduction:
        own = _Drawn(op, site, taps.padded, seed)
        made = base.reduce(self, own, taps, site)
        if not own.done:
            raise TokenrtError(f"method {name!r} chooses by no score, so none can be drawn")
        return made

    return type(f"{base.__name__}Drawn", (base,), {"name": f"{name}-drawn", "reduce": reduce})


def counted(name: str) -> type[Method]:
    """The method called `name`, which drops tokens, under the name `name-counted`.

    Each dropped token counts in attention with the most similar one that stays (cosine), and comes back as that one is.
    The tokens that stay are the same, and so are their values.
    """
    base = methods.get(name)

    def reduce(self: Method, op: Ops, taps: Taps, site: Site) -> Reduction:
        made = base.reduce(self, op, taps, site)
        keep = op("Expand", made.position, steps.batch_shape(op, taps.tokens, site.keep))
        cosine = scores.cosines(op, clusters.finite(op, steps.float_tokens(op, taps)))
        nearest = centers.nearest(op, op("Neg", cosine), keep)
        assign = op("ScatterElements", nearest, keep, steps.numbered(op, taps.tokens, site.keep), axis=1)
        size = clusters.collected(op, steps.sizes(op, taps, site), assign, site.keep)
        return Reduction(made.tokens, size, keep, assign)

    told = {"name": f"{name}-counted", "merges": True, "drops": False, "reduce": reduce}
    return type(f"{base.__name__}Counted", (base,), told)
