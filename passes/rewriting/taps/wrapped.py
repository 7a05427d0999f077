"""Taps around other taps: the same values for tokens in another order, for some of them, or for groups of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from tokenrt.passes.methods.contract import Taps, Value, beyond
from tokenrt.passes.ops.graph_backend import GraphOps


@dataclass(frozen=True)
class Wrapped(ABC):
    """What is of tokens goes through one of five functions by its shape; words, quotas and pictures pass as they are."""

    op: GraphOps
    taps: Taps

    @abstractmethod
    def _rows(self, value: Value) -> Value:
        """Of [B,N,C]."""

    @abstractmethod
    def _heads(self, value: Value) -> Value:
        """Of [B,H,N,D]."""

    @abstractmethod
    def _scores(self, value: Value) -> Value:
        """Of [B,N], what each token receives of attention."""

    @abstractmethod
    def _matrix(self, value: Value) -> Value:
        """Of [B,H,N,N]."""

    @abstractmethod
    def _columns(self, value: Value) -> Value:
        """Of [B,H,T,N], what words attend to."""

    @property
    def padded(self) -> bool:
        return self.taps.padded

    @property
    def state(self) -> Mapping[str, Value]:
        return self.taps.state

    def stream(self) -> Value:
        return self._rows(self.taps.stream())

    def normed(self) -> Value:
        return self._rows(self.taps.normed())

    def metric(self) -> Value:
        return self._rows(self.taps.metric())

    def queries(self) -> Value:
        return self._heads(self.taps.queries())

    def keys(self) -> Value:
        return self._heads(self.taps.keys())

    def values(self) -> Value:
        return self._heads(self.taps.values())

    def attention(self) -> Value:
        return self._matrix(self.taps.attention())

    def class_attention(self) -> Value:
        return self._scores(self.taps.class_attention())

    def received_attention(self) -> Value:
        return self._scores(self.taps.received_attention())

    def last_attention(self) -> Value:
        return self._scores(self.taps.last_attention())

    def text_attention(self) -> Value:
        return self._columns(beyond(self.taps, "text_attention"))

    def text_keys(self) -> Value:
        return beyond(self.taps, "text_keys")

    def neurons(self) -> Value:
        return self._rows(beyond(self.taps, "neurons"))

    def text_neurons(self) -> Value:
        return beyond(self.taps, "text_neurons")

    def layer(self, role: str, block: int) -> Self:
        return replace(self, taps=self.taps.layer(role, block))

    def text(self) -> Value:
        return self.taps.text()

    def text_mask(self) -> Value | None:
        return self.taps.text_mask()

    def quotas(self) -> Value:
        return self.taps.quotas()

    def pixels(self) -> Value:
        return self.taps.pixels()

    def update(self) -> Value:
        return beyond(self.taps, "update")


@dataclass(frozen=True)
class Moved(Wrapped):
    """Taps of some of the tokens, or of all in another order: entries move, and none are added up."""

    @abstractmethod
    def _along(self, value: Value, axis: int, rank: int) -> Value:
        """The entries of these tokens along an axis of so many."""

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

    @property
    def tokens(self) -> Value:
        return self._rows(self.taps.tokens)

    @property
    def size(self) -> Value | None:
        return None if self.taps.size is None else self._rows(self.taps.size)

    def importance(self) -> Value:
        return self._scores(self.taps.importance())

    def segments(self) -> Value:
        return self._scores(beyond(self.taps, "segments"))

    def projected(self, tokens: Value) -> Value:
        return self.taps.projected(tokens)
