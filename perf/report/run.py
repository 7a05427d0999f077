"""What `tokenrt tune` left in a folder, read again: the wish, the plans that were tried, and where model and data lie."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import PlanError, TokenrtError
from tokenrt.passes.planning.plan import Plan

RUN, BEST, MODEL = "run.json", "best.toml", "reduced.onnx"
"""What a run writes."""

NEEDED = (
    "key",
    "model",
    "wish",
    "data",
    "methods",
    "cost",
    "batch",
    "seed",
    "state",
    "verdict",
    "plans",
    "asked",
)
IN_FILES = {"sites": "site", "transformers": "transformer"}
"""Keys of a plan in JSON that a plan file calls otherwise."""
COUNTS = ("tokens", "protected", "grid", "blocks", "unit")


@dataclass(frozen=True)
class Tried:
    """A plan with what the run says of it. harms: sample by sample."""

    name: str
    plan: Plan
    cost: float
    harm: float
    interval: tuple[float, float]
    harms: Sequence[float]
    front: bool


@dataclass(frozen=True)
class Run:
    """A run. told: all that its file holds. tried: every plan, in the order they were tried."""

    folder: Path
    told: Mapping[str, Any]
    tried: Sequence[Tried]

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Run:
        """Read a run folder. Raises: TokenrtError for what is none, and for one of another version."""
        place = Path(folder)
        if not place.is_dir():
            raise TokenrtError(f"{place} is no folder: give the one that `tokenrt tune -o` made")
        file = place / RUN
        if not file.exists():
            raise TokenrtError(
                f"{place} holds no {RUN}: it is no run of `tokenrt tune`, or one that has not ended; start it again with the "
                "same -o and it goes on"
            )
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            lacking = [name for name in NEEDED if name not in told]
            if lacking:
                raise TokenrtError(_other(file, f"it lacks {', '.join(lacking)}"))
            return cls(place, told, [_tried(file, each) for each in told["plans"]])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise TokenrtError(_other(file, f"{type(cause).__name__}: {cause}")) from cause

    @property
    def recommended(self) -> int | None:
        found: int | None = self.told.get("recommended")
        return found

    @property
    def best(self) -> int | None:
        """The plan that is recommended, or comes nearest."""
        return self.recommended if self.recommended is not None else self.told.get("nearest")

    def model(self, moved: str | os.PathLike[str] | None = None) -> Path:
        """The model that was reduced. Raises: TokenrtError where it is not there any more."""
        return self._there(self.told["model"], moved, "model")

    def data(self, moved: str | os.PathLike[str] | None = None) -> Path:
        """The data that plans were judged on. Raises: as `model`."""
        return self._there(self.told["asked"]["data"], moved, "data")

    def _there(self, was: str, moved: str | os.PathLike[str] | None, what: str) -> Path:
        found = Path(moved) if moved is not None else Path(self.told["asked"]["folder"]) / was
        if not found.exists():
            raise TokenrtError(f"the {what} of the run is not at {found}: say where it is with --{what}")
        return found


def _tried(file: Path, entry: Mapping[str, Any]) -> Tried:
    plan = _plan(file, entry["plan"])
    if plan.spec() != entry["spec"]:
        raise TokenrtError(_other(file, f"{entry['spec']} reads as {plan.spec()}"))
    low, high = entry["interval"]
    harms = [float(each) for each in entry["images"]]
    ratio, harm = float(entry["ratio"]), float(entry["harm"])
    return Tried(entry["origin"], plan, ratio, harm, (low, high), harms, bool(entry["front"]))


def _plan(file: Path, entry: Mapping[str, Any]) -> Plan:
    """A plan from the form it has in JSON. Raises: TokenrtError."""
    import tomlkit

    several = "transformers" in entry
    given = {
        IN_FILES.get(key, key): _without_none(value)
        for key, value in entry.items()
        if value is not None and key != "notes" and not (several and key in COUNTS)
    }
    try:
        return Plan.parse(tomlkit.dumps(given), file)
    except PlanError as cause:
        raise TokenrtError(_other(file, str(cause))) from cause


def _without_none(value: Any) -> Any:
    """TOML has no null: keys that hold it are left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _other(file: Path, why: str) -> str:
    again = "run `tokenrt tune` again with this one, into another folder"
    return f"{file} was written by another version of tokenrt ({why}): {again}"
