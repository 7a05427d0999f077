"""What a user asks of a plan beside its method and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokenrt.errors import PlanError
from tokenrt.passes.analysis import protected
from tokenrt.passes.analysis.prepare import Protect, ShapeOption
from tokenrt.passes.planning.several import Chosen

SAID_BY_PLANS = ("site", "options", "transformers", "protect", "span", "text", "short", "cache", "tap_layer")
"""What a plan says itself, so that none of it goes with one."""

OF_TOKENS = {
    "grid": "--grid",
    "protect": "--protect",
    "span": "--span",
    "tap_layer": "--tap-layer",
}
"""What says which tokens leave and by what, and nothing of the entries of a cache."""

INSIDE = {
    "proportional_attention": "--proportional-attention",
    "transformers": "--transformers",
    "short": "--short",
    "cache": "--cache",
    "text": "--text",
}
"""What is about tokens that leave inside a transformer, and not at an output."""


@dataclass(frozen=True)
class Request:
    """The options of `tokenrt.plan`, each under its name and as it is said there; left out, each is None."""

    site: str | None = None
    proportional_attention: bool | None = None
    options: Mapping[str, Any] | None = None
    grid: Sequence[int] | None = None
    transformers: Chosen = None
    protect: Protect = None
    span: str | None = None
    text: str | None = None
    short: str | Sequence[str] | None = None
    cache: str | None = None
    tap_layer: int | None = None
    shape: ShapeOption = None
    allow_noop: bool = False

    @property
    def kept(self) -> str:
        """What never leaves, as text: what is named, and all but a span."""
        return ",".join(filter(None, (protected.text(self.protect), protected.outside(self.span))))

    @property
    def outputs(self) -> str:
        """The outputs that stay short, as a plan says them."""
        return self.short or "" if isinstance(self.short, str | None) else ",".join(self.short)

    def given(self) -> list[str]:
        """The names of what is not left out."""
        return [each.name for each in fields(self) if getattr(self, each.name) is not None]

    def beside_a_plan(self) -> None:
        """Whether all that is asked goes with a plan that was made before. Raises: PlanError."""
        clash = ", ".join(name for name in self.given() if name in SAID_BY_PLANS)
        if clash:
            raise PlanError(f"a plan says {clash} itself: drop {clash}, or edit the plan")

    def inside(self) -> None:
        """Whether all that is asked goes with tokens that leave inside a transformer. Raises: PlanError."""
        if self.tap_layer is not None:
            raise PlanError("--tap-layer goes with --site output: behind a block a method reads that block")

    def at_an_output(self) -> None:
        """Whether all that is asked goes with a choice among the tokens of an output. Raises: PlanError."""
        for name in self.given():
            if name in INSIDE:
                raise PlanError(
                    f"{INSIDE[name]} is about tokens that leave inside a transformer; with --site output drop it"
                )

    def at_a_cache(self) -> None:
        """Whether all that is asked goes with a choice among the entries of caches. Raises: PlanError."""
        for name in self.given():
            if option := (INSIDE | OF_TOKENS).get(name):
                raise PlanError(
                    f"{option} is about tokens, and with --site cache entries of a cache leave: drop it; options of the method "
                    "(--set) say which always stay"
                )
