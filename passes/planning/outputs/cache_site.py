"""A choice among the entries of a layer's cache, as a plan says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenrt.passes.planning.outputs.site import checked, written

CACHE = "cache"


@dataclass(frozen=True)
class CacheSite:
    """`tokens` of the `arriving` entries of a layer's cache stay. method, options: its own, else the plan's."""

    layer: int
    arriving: int
    tokens: int
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "where": CACHE,
            "layer": self.layer,
            "arriving": self.arriving,
            "tokens": self.tokens,
            "method": self.method,
            **({"options": written(self.options)} if self.options else {}),
        }

    def spec(self) -> str:
        """As one part of a plan's line: cache 3:64 by snapkv."""
        return f"{CACHE} {self.layer}:{self.tokens} by {self.method}"


KINDS: Mapping[str, tuple[type, Any]] = {
    "layer": (int, None), "arriving": (int, None), "tokens": (int, None), "method": (str, ""), "options": (dict, {}),
}  # fmt: skip
"""What each entry of a plan file holds, and what stands for one that is left out; None: it must be there."""


def read(entry: Mapping[str, Any], method: str, options: Mapping[str, Any], where: str) -> CacheSite:
    """A site of a plan file; `method` and `options` are the plan's own. Raises: PlanError that begins with `where`."""
    return CacheSite(**checked(entry, KINDS, method, options, where, "a cache"))
