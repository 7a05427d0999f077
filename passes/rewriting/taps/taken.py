"""Taps of the tokens that are left, where a block in front of them had more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenrt.passes.methods.contract import Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.rewriting.taps.wrapped import Moved


@dataclass(frozen=True)
class Taken(Moved):
    """index [B,K] or [1,K]: which of the tokens of that block these are."""

    index: Value

    def _along(self, value: Value, axis: int, rank: int) -> Value:
        """The entries at `index` along an axis, of each picture its own."""
        if isinstance(self.index, np.ndarray):
            return self.op("Gather", value, self.index[0], axis=axis)
        order = [0, axis, *(other for other in range(1, rank) if other != axis)]
        back = [order.index(other) for other in range(rank)]
        turned = value if axis == 1 else self.op("Transpose", value, perm=order)
        taken = steps.gather(self.op, turned, self.index)
        return taken if axis == 1 else self.op("Transpose", taken, perm=back)
