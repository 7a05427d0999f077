"""Rates: how many tokens each block prunes and merges, as a file (TOML or JSON) or a mapping gives them.

Two lists, one whole number per block, as tokens that leave:

    prune = [0, 4, 4, 0]
    merge = [8, 8, 0, 0]

or as tokens that stay, protected ones included, behind the pruning and behind the merging of each block:

    prune_kept = [197, 185, 181, 181]
    merge_kept = [189, 181, 181, 181]

A list that is left out does nothing. A number of tokens to stay that is not below what arrives removes nothing.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import PlanError

LEAVE, STAY = ("prune", "merge"), ("prune_kept", "merge_kept")
WANTED = "prune and merge, or prune_kept and merge_kept"


@dataclass(frozen=True)
class Rates:
    """Two numbers per block, of pruning and of merging: tokens that leave, or where `stay` is set, that stay."""

    steps: tuple[tuple[int, int], ...]
    stay: bool = False

    def behind(self, place: int, tokens: int) -> int:
        """Tokens left behind the block at `place`, where `tokens` arrive."""
        prune, merge = self.steps[place]
        return min(tokens, prune, merge) if self.stay else tokens - prune - merge

    def survivors(self, blocks: Sequence[int], tokens: int, left: Mapping[int, int]) -> list[int]:
        """Tokens that survive the pruning at each block of the model, before any is merged.

        blocks: which of the numbers is each block's, -1 where none is; left: tokens behind each block where that changes.
        """
        found = []
        for block, place in enumerate(blocks):
            prune = self.steps[place][0] if place >= 0 else 0
            found.append(min(tokens, prune) if self.stay and place >= 0 else tokens - prune)
            tokens = left.get(block, tokens)
        return found

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Rates:
        """Read rates. Raises: PlanError naming the file, the list and what was expected."""
        name = "rates" if isinstance(source, Mapping) else f"rates {os.fspath(source)}"
        data = source if isinstance(source, Mapping) else _load(Path(source))
        stay = any(key in data for key in STAY)
        keys = STAY if stay else LEAVE
        if not set(data) <= set(keys) or not data:
            raise PlanError(
                f"{name}: expected the lists {WANTED}, found {', '.join(map(str, data)) or 'none'}"
            )
        lists = {key: _whole_numbers(name, key, data[key]) for key in data}
        lengths = {key: len(values) for key, values in lists.items()}
        if len(set(lengths.values())) > 1:
            told = " and ".join(f"{key} has {length}" for key, length in lengths.items())
            raise PlanError(f"{name}: {told} numbers; each list has one per block")
        blocks = next(iter(lengths.values()))
        nothing = [_NO_LIMIT if stay else 0] * blocks
        prune, merge = (lists.get(key, nothing) for key in keys)
        return cls(tuple(zip(prune, merge, strict=True)), stay)


_NO_LIMIT = 2**31


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as cause:
        raise PlanError(f"cannot read the rates {path}: {cause}") from cause
    if not isinstance(data, dict):
        raise PlanError(f"rates {path}: expected the lists {WANTED}, found {type(data).__name__}")
    return data


def _whole_numbers(name: str, key: str, values: Any) -> list[int]:
    fits = isinstance(values, list | tuple) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values
    )
    if not fits:
        raise PlanError(f"{name}: {key} must be a list of whole numbers, 0 or more, found {values!r}")
    return list(values)
