"""What a method reads where one choice holds for several rows of a picture: for all frames where places leave, and the reverse.

To a method one token of all these rows is one token, as many times as wide: its vectors lie side by side, so that row w of it is
compared and merged with row w of another. The heads of all rows are heads of its attention, so that what is averaged over heads
is averaged over rows as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.methods.contract import Value
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.taps.wrapped import Wrapped


@dataclass(frozen=True)
class Common(Wrapped):
    """The taps of W rows a picture, [B*W,N,C], as those of one row. tokens [B,N,W*C]; size [B,N,1]; count: N.

    heads, key_heads: those of one row.
    """

    across: int
    count: int
    heads: int
    key_heads: int
    tokens: ir.Value
    size: ir.Value | None

    def _rows(self, value: Value) -> Value:
        """[B*W,N,D] as [B,N,W*D]."""
        apart = self._apart(self.op("Unsqueeze", value, [1]), 1)
        return self.op("Reshape", self.op("Transpose", apart, perm=[0, 2, 1, 3]), [0, 0, -1])

    def _heads(self, value: Value) -> Value:
        """[B*W,H,N,D] as [B,W*H,N,D]."""
        return self._apart(value, self.heads)

    def _scores(self, value: Value) -> Value:
        """[B*W,N] as [B,N]: the mean over rows."""
        apart = self.op("Reshape", value, [-1, self.across, self.count])
        return self.op("ReduceMean", apart, axes=[1], keepdims=0)

    def _matrix(self, value: Value) -> Value:
        """[B*W,H,N,N] as [B,W*H,N,N]."""
        return self._apart(value, self.heads)

    def _columns(self, value: Value) -> Value:
        """[B*W,H,T,N] as [B,W*H,T,N]."""
        return self._apart(value, self.heads)

    def _apart(self, value: Value, heads: int) -> Value:
        """[B*W,H,M,D] as [B,W*H,M,D]."""
        return self.op("Reshape", value, [-1, self.across * heads, 0, 0])

    def keys(self) -> Value:
        """[B,W*G,N,D], of G heads of keys."""
        return self._apart(self.taps.keys(), self.key_heads)

    def values(self) -> Value:
        """[B,W*G,N,D]."""
        return self._apart(self.taps.values(), self.key_heads)

    def stream(self) -> Value:
        """[B,N,W*C], as what is read already lies there."""
        return self.taps.stream()

    def normed(self) -> Value:
        """[B,N,W*C], as what is read already lies there."""
        return self.taps.normed()

    def importance(self) -> Value:
        return self.taps.importance()

    def projected(self, tokens: Value) -> Value:
        return self.taps.projected(tokens)


def repeated(op: GraphOps, value: ir.Value, across: int, count: int, width: int = 1) -> ir.Value:
    """[B*W,N,D] of [B,N,D]: the same for all rows of a picture."""
    wide = op("Tile", value, [1, across, 1])
    rows: ir.Value = op("Reshape", wide, [-1, count, width])
    return rows
