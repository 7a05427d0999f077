"""Taps of the tokens that are left, where a block in front of them had more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenrt.passes.methods.contract import Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.rewriting.taps.wrapped import Wrapped


@dataclass(frozen=True)
class Taken(Wrapped):
    """index [B,K] or [1,K]: which of the tokens of that block these are."""

    index: Value

    def _rows(self, value: Value) -> Value:
        return self._along(value, 1, 3)

    def _heads(self, value: Value) -> Value:
        return self._along(value, 2, 4)

    def _scores(self, value: Value) -> Value:
        return self._along(value, 1, 2)

    def _matrix(self, value: Value) -> Value:
        return self._along(self._along(value, 2, 4), 3, 4)

    def _columns(self, value: Value) -> Value:
        return self._along(value, 3, 4)

    def _along(self, value: Value, axis: int, rank: int) -> Value:
        """The entries at `index` along an axis, of each picture its own."""
        if isinstance(self.index, np.ndarray):
            return self.op("Gather", value, self.index[0], axis=axis)
        order = [0, axis, *(other for other in range(1, rank) if other != axis)]
        back = [order.index(other) for other in range(rank)]
        turned = value if axis == 1 else self.op("Transpose", value, perm=order)
        taken = steps.gather(self.op, turned, self.index)
        return taken if axis == 1 else self.op("Transpose", taken, perm=back)

    @property
    def tokens(self) -> Value:
        return self._rows(self.taps.tokens)

    @property
    def size(self) -> Value | None:
        return None if self.taps.size is None else self._rows(self.taps.size)

    def importance(self) -> Value:
        return self._scores(self.taps.importance())

    def projected(self, tokens: Value) -> Value:
        return self.taps.projected(tokens)
