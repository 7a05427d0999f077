"""A budget: how much to remove, before a plan turns it into counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat, SupportsIndex

from tokenrt.errors import PlanError
from tokenrt.passes.planning import schedules
from tokenrt.passes.planning.rates import Rates


@dataclass(frozen=True)
class Budget:
    """How much to remove, before it is turned into counts. Make one with remove, keep, tokens, flops or schedule.

    multiple_of: what every count of tokens is to be a multiple of; see `rounded`.
    """

    kind: Literal["remove", "keep", "tokens", "flops", "schedule"]
    amount: float = 0
    layers: tuple[int, ...] | None = None
    counts: tuple[int, ...] = ()
    name: str = ""
    rates: Rates | None = None
    multiple_of: int = 1
    center: float = 0

    @classmethod
    def remove(cls, tokens: int, layers: Sequence[int] | None = None) -> Budget:
        """`tokens` leave at every block (or at `layers`)."""
        if not _whole(tokens) or tokens < 0:
            raise PlanError(
                f"--remove {tokens}: a whole number of tokens, 0 or more, can be removed per block"
            )
        return cls("remove", int(tokens), _layer_list(layers))

    @classmethod
    def keep(cls, ratio: float, layers: Sequence[int] | None = None) -> Budget:
        """At each layer, ceil(ratio * unprotected tokens) stay."""
        if not _number(ratio) or not 0 < ratio <= 1:
            raise PlanError(f"--keep {ratio}: a keep ratio lies above 0 and is at most 1")
        return cls("keep", float(ratio), _layer_list(layers))

    @classmethod
    def tokens(cls, counts: Sequence[int], layers: Sequence[int] | None = None) -> Budget:
        """Exact counts, protected tokens included, one per block or per layer of `layers`."""
        return cls("tokens", 0, _layer_list(layers), _list("--tokens", counts))

    @classmethod
    def flops(cls, fraction: float) -> Budget:
        """The largest plan with a constant removal per block that needs at most this fraction of the model's work."""
        if not _number(fraction) or not 0 < fraction <= 1:
            raise PlanError(
                f"--flops {fraction}: a fraction of the model's work lies above 0 and is at most 1"
            )
        return cls("flops", float(fraction))

    @classmethod
    def schedule(
        cls,
        name: str,
        value: float | str | os.PathLike[str] | Mapping[str, Any],
        layers: Sequence[int] | None = None,
    ) -> Budget:
        """A schedule by name, one of `tokenrt.passes.planning.schedules.SCHEDULES`.

        `value` is R, a ratio, "0.5@3" for a ratio at one block or around a layer, or rates per block.
        """
        amount, rates, own, center = schedules.read(name, value)
        if own is not None and layers is not None:
            raise PlanError(f"--schedule {name}={value} names its block: drop --layers")
        if layers is not None and len(layers) > 1 and schedules.get(name).takes == "RATIO@BLOCK":
            raise PlanError(
                f"--schedule {name}={value} is for one block: name one with --layers, not {len(layers)}"
            )
        return cls(
            "schedule", amount, own if layers is None else _layer_list(layers), (), name, rates, center=center
        )

    def rounded(self, multiple_of: int) -> Budget:
        """The budget with every count of tokens, protected ones included, a multiple of this, as in --multiple-of 8.

        The counts are made as without it, then each becomes the nearest multiple that the method can leave of what
        arrives there, of two as near the larger; a site at which no token leaves then is left out. A share of the work stays a
        bound: it holds for the rounded counts. Raises: PlanError.
        """
        if not _whole(multiple_of) or multiple_of < 1:
            raise PlanError(f"--multiple-of {multiple_of}: expected a whole number of tokens, 1 or more")
        return replace(self, multiple_of=int(multiple_of))

    def option(self) -> str:
        """The budget as the command line spells it, as in --remove 8."""
        whole = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"--schedule {self.name}={whole}" if self.kind == "schedule" else f"--{self.kind} {whole}"


def _whole(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool)


def _list(option: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Iterable) or not all(_whole(value) for value in values):
        raise PlanError(f"{option} {values!r}: expected a list of whole numbers")
    return tuple(int(value) for value in values)


def _layer_list(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else _list("--layers", layers)
