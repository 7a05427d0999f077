"""What a user wishes of a plan: how cheap it is to be at the least, or how little it may harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenrt.errors import PlanError

Kind = Literal["flops", "speedup", "latency", "max-drop"]


@dataclass(frozen=True)
class Wish:
    """One wish.

    flops: a share of the model's multiply-accumulates. speedup: so many times as fast. latency: milliseconds. max-drop: the
    largest mean harm, in the measure of the worst output; the cheapest plan within it is wanted.
    """

    kind: Kind
    value: float

    @classmethod
    def of(
        cls,
        *,
        flops: float | None = None,
        speedup: float | None = None,
        latency: float | None = None,
        max_drop: float | None = None,
    ) -> Wish:
        """The one that is given. Raises: PlanError for none, several, or one outside its bounds."""
        given: dict[Kind, float] = {
            kind: value
            for kind, value in zip(_BOUNDS, (flops, speedup, latency, max_drop), strict=True)
            if value is not None
        }
        if len(given) != 1:
            told = " and ".join(f"--{kind}" for kind in given) or "nothing"
            raise PlanError(
                f"tune needs one wish, and {told} is given: say one of --flops, --speedup, --latency, --max-drop"
            )
        ((kind, value),) = given.items()
        low, high, bounds = _BOUNDS[kind]
        if not low < value < high:
            raise PlanError(f"--{kind} {value:g}: expected {bounds}")
        return cls(kind, value)

    def most(self, milliseconds: float | None) -> float | None:
        """The largest share of the unreduced model's cost that fulfils it; None where any does.

        milliseconds: of the unreduced model. Raises: PlanError for --latency where it is not known.
        """
        if self.kind == "flops":
            return self.value
        if self.kind == "speedup":
            return 1 / self.value
        if self.kind == "max-drop":
            return None
        if not milliseconds:
            raise PlanError(
                "--latency needs a target whose time is known: a GPU's profile, or ort-cpu, which is measured"
            )
        return self.value / milliseconds

    def __str__(self) -> str:
        return {
            "flops": f"at most {self.value:.0%} of the multiply-accumulates",
            "speedup": f"{self.value:g} times as fast",
            "latency": f"at most {self.value:g} ms",
            "max-drop": f"a mean harm of at most {self.value:g}",
        }[self.kind]


_BOUNDS: dict[Kind, tuple[float, float, str]] = {
    "flops": (0, 1, "a share of the model's work above 0 and below 1"),
    "speedup": (1, float("inf"), "a factor above 1"),
    "latency": (0, float("inf"), "milliseconds, more than 0"),
    "max-drop": (0, float("inf"), "a harm above 0, in the measure of the model's output"),
}
