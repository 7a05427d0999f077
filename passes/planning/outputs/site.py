"""A choice among the tokens of an output, as a plan says it."""

from __future__ import annotations

import math
import os
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Method, Site
from tokenrt.passes.planning.budget import Budget

OUTPUT = "output"


@dataclass(frozen=True)
class OutputSite:
    """`tokens` of the rows of an output stay.

    output: its name. arriving: its rows. method, options: its own, else the plan's. tap_layer: the block whose attention and keys
    are read, negative from the end. protect: rows that never leave, as text. grid: the layout of the others, where known.
    inputs: the shapes of the inputs that the model gains, with a name in place of a free batch.
    """

    output: str
    arriving: int
    tokens: int
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tap_layer: int = -1
    protect: str = ""
    grid: tuple[int, ...] | None = None
    inputs: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "where": OUTPUT,
            "output": self.output,
            "arriving": self.arriving,
            "tokens": self.tokens,
            "method": self.method,
            **({"options": written(self.options)} if self.options else {}),
            **({"tap_layer": self.tap_layer} if self.tap_layer != -1 else {}),
            **({"protect": self.protect} if self.protect else {}),
            **({"grid": list(self.grid)} if self.grid else {}),
            **({"inputs": {name: list(dims) for name, dims in self.inputs.items()}} if self.inputs else {}),
        }

    def spec(self) -> str:
        """As one part of a plan's line: output image_features:64 by divprune."""
        return f"{OUTPUT} {self.output}:{self.tokens} by {self.method}"


KINDS: Mapping[str, tuple[type, Any]] = {
    "output": (str, None),
    "arriving": (int, None),
    "tokens": (int, None),
    "method": (str, ""),
    "options": (dict, {}),
    "tap_layer": (int, -1),
    "protect": (str, ""),
    "grid": (list, []),
    "inputs": (dict, {}),
}
"""What each entry of a plan file holds, and what stands for one that is left out; None: it must be there."""


def read(entry: Mapping[str, Any], method: str, options: Mapping[str, Any], where: str) -> OutputSite:
    """A site of a plan file; `method` and `options` are the plan's own. Raises: PlanError that begins with `where`."""
    values = checked(entry, KINDS, method, options, where, "an output")
    inputs = {name: tuple(dims) for name, dims in values["inputs"].items()}
    return OutputSite(**{**values, "grid": tuple(values["grid"]) or None, "inputs": inputs})


def checked(
    entry: Mapping[str, Any],
    kinds: Mapping[str, tuple[type, Any]],
    method: str,
    options: Mapping[str, Any],
    where: str,
    what: str,
) -> dict[str, Any]:
    """What a plan file says of a site at `what`, by the kinds of its entries. Raises: PlanError that begins with `where`."""
    values: dict[str, Any] = {}
    for key, (kind, default) in kinds.items():
        value = entry.get(key, default)
        if value is None or not isinstance(value, kind) or isinstance(value, bool):
            raise PlanError(f"{where}: {key!r} must be {kind.__name__}, found {value!r}")
        values[key] = value
    keys = ("where", *kinds)
    unknown = next((key for key in entry if key not in keys), None)
    if unknown is not None:
        raise PlanError(f"{where} has no entry {unknown!r}; those of a site at {what}: {', '.join(keys)}")
    values["method"], values["options"] = inherited(values["method"], values["options"], method, options)
    return values


def inherited(
    name: str, own: Mapping[str, Any], method: str, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The method of a site and its options, where it may leave either to its plan, whose `method` and `options` stand behind."""
    return name or method, dict(own or (options if name in ("", method) else {}))


def written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as text formats can hold them: of arrays their names, of paths the text, of None nothing."""
    made: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            made[key] = f"arrays: {', '.join(map(str, value))}"
        elif value is not None:
            made[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return made


def left(budget: Budget, method: Method, site: Site) -> tuple[int, tuple[str, ...]]:
    """How many of the rows of an output a budget leaves, and a note where a ratio had to be rounded. Raises: PlanError.

    site: with the counts of the output; its `keep` says nothing. A ratio goes to the nearest count that the method can leave.
    """
    tokens, notes = site.tokens, tuple[str, ...]()
    if budget.layers is not None:
        raise PlanError("--layers names blocks, and the tokens leave at an output here: drop it")
    if budget.kind == "remove":
        wanted = tokens - int(budget.amount)
    elif budget.kind == "keep":
        wanted = method.after_keeping(math.ceil(budget.amount * (tokens - site.protect)), site.protect)
    elif budget.kind == "tokens":
        if len(budget.counts) != 1:
            raise PlanError(
                f"--tokens gives {len(budget.counts)} counts, and an output is reduced once: give one"
            )
        (wanted,) = budget.counts
    else:
        raise PlanError(
            f"--{budget.kind} divides tokens over blocks, and an output is reduced once: give --tokens K, --keep RATIO or "
            "--remove R"
        )
    if budget.kind == "keep" or budget.multiple_of > 1:
        whole = wanted >= tokens or budget.multiple_of > 1
        fitting = [k for k in (*method.counts(site), *[tokens] * whole) if k % budget.multiple_of == 0]
        if not fitting:
            multiple = f" multiple of {budget.multiple_of}" if budget.multiple_of > 1 else " count but all"
            raise PlanError(f"{method.name} can leave no{multiple} of {tokens} tokens")
        nearest = min(fitting, key=lambda count: (abs(count - wanted), -count))
        if nearest != wanted and budget.multiple_of == 1:
            notes = (
                f"{budget.option()}: {method.name} cannot leave {wanted} of {tokens} tokens; {nearest} is the nearest",
            )
        wanted = nearest
    check(method, wanted, site)
    return wanted, notes


def check(method: Method, wanted: int, site: Site) -> None:
    """Whether so many rows can stay. Raises: PlanError with the limits."""
    tokens = site.tokens
    if wanted > tokens:
        raise PlanError(f"{wanted} tokens cannot stay: the output has {tokens}")
    fewest = method.fewest(tokens, site.protect)
    if wanted < fewest:
        kept = f" ({site.protect} of them never leave)" if site.protect else ""
        raise PlanError(
            f"{wanted} of the output's {tokens} tokens cannot stay alone: {method.name} leaves {fewest} at the least{kept}"
        )
    counts = method.counts(site)
    if wanted < tokens and wanted not in counts:
        place = bisect(counts, wanted)
        near = " or ".join(map(str, counts[max(place - 1, 0) : place + 1])) or "none"
        raise PlanError(
            f"{wanted} of the output's {tokens} tokens cannot stay with {method.name}, which leaves certain counts: {near} can"
        )
