"""What is compared: reduced models by file, plans that are made into one, and folders of either, as tune writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.graph.model import load, save
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.tune.outcome import BEST, MODEL, PLANS, RUN

ONNX, TOML = ".onnx", ".toml"
CARRIED = "tokenrt.plan"
"""Where the metadata of a reduced model says how it was made."""


@dataclass(frozen=True)
class Contestant:
    """A reduced model.

    given: the model or plan that was named. file: the model that runs. plan: how it was made, None where the model does not say.
    """

    name: str
    given: Path
    file: Path
    plan: Plan | None

    def tokens(self) -> tuple[int, int] | None:
        """Before the first reduction and behind the last, of the first transformer, output or cache that is reduced."""
        if self.plan is None:
            return None
        if not self.plan.sites and self.plan.behind:
            return self.plan.behind[0].arriving, self.plan.behind[0].tokens
        counts = self.plan.of((*self.plan.reduced(), 0)[0]).counts()
        return counts[0], counts[-1]


@dataclass(frozen=True)
class Place:
    """A model or a plan that was named. label: the path that it goes by where names must be told apart, or a name of its own."""

    file: Path
    label: Path
    name: str = ""


def places(given: Sequence[Path], original: Path) -> list[Place]:
    """Everything that was named, folders opened, in order.

    Raises: TokenrtError for what is not there, holds nothing to compare, comes twice, or is the original.
    """
    found = [place for path in given for place in _opened(path, original)]
    if not found:
        raise TokenrtError(
            "nothing to compare: name reduced models (.onnx), plans (.toml) or folders of them"
        )
    seen = set[Path]()
    for own in (place.file.resolve() for place in found):
        if own == original.resolve():
            raise TokenrtError(f"{own.name} is the original itself: name only what is compared with it")
        if own in seen:
            raise TokenrtError(f"{own.name} comes twice: name each model once")
        seen.add(own)
    return found


def entered(found: Sequence[Place], folder: Path, reducer: Callable[[], Reducer]) -> list[Contestant]:
    """The places as models. Plans are made into models in `folder`, by the reducer of the original. Raises: TokenrtError."""
    made = []
    for number, (name, place) in enumerate(zip(_names(found), found, strict=True)):
        file = place.file
        if file.suffix == TOML:
            file = save(reducer().reduce(Plan.load(file)).model, folder / f"{number}{ONNX}")
        made.append(Contestant(name, place.file, file, carried(load(file), place.file)))
    return made


def carried(model: ir.Model, file: Path) -> Plan | None:
    """The plan by which a model was made, None where it says none. Raises: PlanError for one that cannot be read."""
    text = model.metadata_props.get(CARRIED)
    return None if text is None else Plan.parse(text, f"in the metadata of {file}")


def _opened(path: Path, original: Path) -> Iterator[Place]:
    if not path.exists():
        raise TokenrtError(f"no such file or directory: {path}")
    if path.is_dir():
        yield from _run(path) if (path / RUN).exists() else _folder(path, original)
    elif path.suffix in (ONNX, TOML):
        yield Place(path, path.with_suffix(""))
    else:
        raise TokenrtError(f"{path} is neither a model (.onnx), nor a plan (.toml), nor a folder of them")


def _run(folder: Path) -> Iterator[Place]:
    """The model that a run of `tokenrt tune` recommends."""
    best = next((folder / name for name in (MODEL, BEST) if (folder / name).exists()), None)
    if best is None:
        raise TokenrtError(
            f"{folder} recommends no plan. It says: {_told(folder).get('verdict', 'nothing')} Its plans are in {folder / PLANS}: "
            "name that folder to compare them"
        )
    yield Place(best, folder)


def _folder(folder: Path, original: Path) -> Iterator[Place]:
    """Its models but for the original, and its plans of which no model lies beside them."""
    files = sorted((path for path in folder.iterdir() if path.suffix in (ONNX, TOML)), key=_natural)
    models = {path.stem for path in files if path.suffix == ONNX}
    files = [path for path in files if path.suffix == ONNX or path.stem not in models]
    files = [path for path in files if path.resolve() != original.resolve()]
    if not files:
        raise TokenrtError(f"{folder} holds no model (.onnx), no plan (.toml) and no run of `tokenrt tune`")
    tried = _told(folder.parent).get("plans", []) if folder.name == PLANS else []
    for path in files:
        known = path.stem.isdigit() and int(path.stem) < len(tried)
        name = f"{path.stem}: {tried[int(path.stem)]['origin']}" if known else ""
        yield Place(path, path.with_suffix(""), name)


def _told(folder: Path) -> dict[str, Any]:
    """What a run has written down; nothing where there is no run."""
    if not (folder / RUN).exists():
        return {}
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise TokenrtError(f"cannot read {folder / RUN}: {cause}") from cause
    return found


def _natural(path: Path) -> list[str | int]:
    """Numbers in a name by their size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _names(found: Sequence[Place]) -> list[str]:
    """Names of their own, or the shortest ends of paths that tell each from the others."""
    for length in range(1, max(len(place.label.absolute().parts) for place in found) + 1):
        names = [place.name or "/".join(place.label.absolute().parts[-length:]) for place in found]
        if len({*names}) == len(names):
            return names
    return [str(place.file) for place in found]
