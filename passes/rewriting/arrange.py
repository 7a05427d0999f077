"""The first reduction of tokens whose protected ones do not all stand in front: a method sees them there.

Methods keep the first P tokens. Where learned tokens stand behind the patches, or the user protects others, the method reads its
taps with the protected tokens moved to the front, and what it says of positions is told in the model's own order again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tokenrt.passes.methods.contract import Method, Reduction, Site, Taps, Value
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.stages import compose, constant


def reduce(op: GraphOps, method: Method, taps: Taps, site: Site, order: np.ndarray[Any, Any]) -> Reduction:
    """What the method makes of tokens that stand in another order; order [N]: the position of each as the method sees them."""
    if (order == np.arange(len(order))).all():
        return method.reduce(op, taps, site)
    found = method.reduce(op, Arranged(op, taps, order), site)
    back = np.argsort(order)
    affinity = found.affinity if found.affinity is None else op("Gather", found.affinity, back, axis=1)
    return replace(
        found,
        position=compose(op, order[None], constant(found.position)),
        assign=compose(op, constant(found.assign), back[None]),
        affinity=affinity,
    )


@dataclass(frozen=True)
class Arranged:
    """Taps of tokens in another order."""

    op: GraphOps
    taps: Taps
    order: np.ndarray[Any, Any]

    def _along(self, value: Value, *axes: int) -> Value:
        for axis in axes:
            value = self.op("Gather", value, self.order, axis=axis)
        return value

    @property
    def tokens(self) -> Value:
        return self._along(self.taps.tokens, 1)

    @property
    def size(self) -> Value | None:
        return None if self.taps.size is None else self._along(self.taps.size, 1)

    @property
    def state(self) -> Mapping[str, Value]:
        return self.taps.state

    def stream(self) -> Value:
        return self._along(self.taps.stream(), 1)

    def normed(self) -> Value:
        return self._along(self.taps.normed(), 1)

    def metric(self) -> Value:
        return self._along(self.taps.metric(), 1)

    def queries(self) -> Value:
        return self._along(self.taps.queries(), 2)

    def keys(self) -> Value:
        return self._along(self.taps.keys(), 2)

    def values(self) -> Value:
        return self._along(self.taps.values(), 2)

    def attention(self) -> Value:
        return self._along(self.taps.attention(), 2, 3)

    def class_attention(self) -> Value:
        return self._along(self.taps.class_attention(), 1)

    def received_attention(self) -> Value:
        return self._along(self.taps.received_attention(), 1)
