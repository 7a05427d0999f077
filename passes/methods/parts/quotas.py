"""Steps of methods that give each group of tokens, such as a crop, a share that depends on the picture.

Groups are stretches of the unprotected tokens, one behind the other. The total stays K whatever the shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps
from tokenrt.passes.ops.contract import Array

ROW, COLUMN = np.array([-2]), np.array([-1])


def ranks(op: Ops, score: Value, count: int) -> Value:
    """How many of the `count` entries of its row come before each: larger ones, and equal ones that stand before; float32."""
    other, own = op("Unsqueeze", score, ROW), op("Unsqueeze", score, COLUMN)
    earlier = np.tri(count, count, -1, dtype=bool)
    ahead = op("Or", op("Greater", other, own), op("And", op("Equal", other, own), earlier))
    return op("ReduceSum", op("Cast", ahead, to=steps.FLOAT), COLUMN, keepdims=0)


def whole(op: Ops, share: Value, total: int, count: int, preferred: Value | None = None) -> Value:
    """Round shares [B,G], which add up to about `total`, to whole numbers that add up to it.

    They are rounded down, and what is missing goes one each to those with the most of `preferred`, else with the largest
    remainder; of equals to the first.
    """
    down = op("Floor", share)
    missing = op("Sub", float(total), op("ReduceSum", down, COLUMN, keepdims=1))
    most = op("Sub", share, down) if preferred is None else preferred
    return op("Add", down, op("Cast", op("Less", ranks(op, most, count), missing), to=steps.FLOAT))


@dataclass(frozen=True)
class Groups:
    """Stretches of `lengths` tokens."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, tokens: int, count: int) -> Groups:
        """`count` stretches of tokens // count, the first tokens % count of them one longer."""
        each, more = divmod(tokens, count)
        return cls(tuple(each + (group < more) for group in range(count)))

    @property
    def number(self) -> Array:
        """The group of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def starts(self) -> Array:
        """The first place of the group of each token: [1,T] float32."""
        return np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths).astype(np.float32)[None]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def fold(self, op: Ops, row: Value, fill: float) -> Value:
        """[B,T] -> [B,G,n], shorter groups filled up with a number."""
        if len(set(self.lengths)) > 1:
            places = np.full((len(self.lengths), self.longest), sum(self.lengths))
            places[self._real] = np.arange(sum(self.lengths))
            row = op(
                "Gather", op("Concat", row, scores.filled(op, row, fill, 1), axis=1), places.ravel(), axis=1
            )
        return op("Reshape", row, np.array([-1, len(self.lengths), self.longest]))

    def flat(self, op: Ops, folded: Value) -> Value:
        """[B,G,n] -> [B,T]."""
        row = op("Reshape", folded, np.array([-1, len(self.lengths) * self.longest]))
        if len(set(self.lengths)) > 1:
            row = op("Gather", row, np.flatnonzero(self._real.ravel()), axis=1)
        return row

    def means(self, op: Ops, row: Value) -> Value:
        """The mean of each group: [B,T] -> [B,G]."""
        total = op("ReduceSum", self.fold(op, row, 0.0), COLUMN, keepdims=0)
        return op("Div", total, np.array(self.lengths, np.float32))

    def ranks(self, op: Ops, score: Value) -> Value:
        """How many of its group come before each token, by falling score [B,T]: [B,T] float32."""
        return self.flat(op, ranks(op, self.fold(op, score, steps.LOWEST), self.longest))

    def to_tokens(self, op: Ops, numbers: Value) -> Value:
        """A number of each group [B,G] for each of its tokens: [B,T]."""
        return op("Gather", numbers, self.number, axis=1)

    @property
    def _real(self) -> Array:
        return np.arange(self.longest) < np.array(self.lengths)[:, None]


def select(op: Ops, taps: Taps, site: Site, score: Value, chosen: Value) -> Value:
    """Positions [B,K] of the protected tokens, the chosen ones, and as many of the best others as there is room for.

    score [B,N], at most 1; chosen [B,T] bool: where too many are chosen, those with the lowest scores are left out.
    """
    first = op("Cast", chosen, to=steps.FLOAT)
    lifted = op(
        "Add", scores.numbers(op, score, 1.0), scores.behind_protected(op, op("Mul", first, 2.0), site)
    )
    return scores.select(op, taps, site, lifted, steps.BY_POSITION)


def arranged(op: Ops, site: Site, index: Value, place: Value) -> Value:
    """`index` [B,K] with the protected tokens first and the others by ascending `place` [B,T]."""
    if site.protect:
        first = op.constant(np.arange(-site.protect, 0, dtype=np.float32)[None])
        place = op("Concat", op("Expand", first, steps.batch_shape(op, place, site.protect)), place, axis=1)
    key = op("GatherElements", place, index, axis=1)
    _, order = op("TopK", key, np.array([site.keep]), axis=1, largest=0)
    return op("GatherElements", index, order, axis=1)
