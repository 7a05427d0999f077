"""Write for each photograph of a folder which of its patches stayed or were joined, by the plan a reduced model carries."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.files import atomic
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.checking.check import CheckReport
from tokenrt.passes.checking.inputs import Input
from tokenrt.passes.checking.pictures import PICTURES, picture
from tokenrt.passes.checking.runtime import session_options
from tokenrt.passes.graph.interface import KEPT, MAP
from tokenrt.passes.graph.model import ModelLike, load, on_disk
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reduce import reduce
from tokenrt.perf.pictures.draw import Array, drawn, labels

SIDE = 448
"""The least side of a picture that is written, in pixels."""


@dataclass(frozen=True)
class Drawn:
    """The pictures that were written: their files, and the tokens left of how many."""

    files: tuple[Path, ...]
    tokens: int
    of: int

    def as_dict(self) -> dict[str, Any]:
        return {"files": [str(path) for path in self.files], "tokens": self.tokens, "of": self.of}

    def __rich__(self) -> str:
        folder = self.files[0].parent if self.files else "nowhere"
        return f"pictures: {len(self.files)} written to {folder}, {self.tokens} of {self.of} patches' tokens are left"


@dataclass(frozen=True)
class Checked:
    """The report of a check, and the pictures drawn beside it."""

    report: CheckReport
    pictures: Drawn

    @property
    def ok(self) -> bool:
        return self.report.ok

    def as_dict(self) -> dict[str, Any]:
        return {**self.report.as_dict(), "pictures": self.pictures.as_dict()}

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self.report, self.pictures)


def write(
    original: ModelLike,
    reduced: ModelLike,
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    tell: Callable[[str], None] = lambda line: None,
) -> Drawn:
    """Draw the tokens that a reduced model leaves on every picture of a folder, as PNG files of the same names.

    The plan in the reduced model's metadata is applied to the original again, in float32, and asked where every token went: a
    half form may decide near ties otherwise. Raises: TokenrtError where the model carries no plan, the grid of its tokens is not
    known, or the folder holds no pictures.
    """
    import onnxruntime

    sources = sorted(path for path in Path(data).glob("*") if path.suffix.lower() in PICTURES)
    if not sources:
        raise TokenrtError(
            f"--pictures draws on photographs, and {data} holds none: give a folder of them with --data"
        )
    plan, item = _plan(reduced), _input(original)
    made = reduce(original, plan=plan, source_map=bool(plan.sites) and not plan.outputs)
    # As bytes a model would lose the weights that lie beside it.
    with on_disk(made.model) as file:
        session = onnxruntime.InferenceSession(
            str(file), session_options(file), providers=["CPUExecutionProvider"]
        )
    names = [value.name for value in session.get_outputs()]
    told = next((name for name in (MAP, KEPT) if name in names), None)
    if told is None or len(session.get_inputs()) != 1:
        raise TokenrtError(
            "the plan tells of no token which it became, or the model has inputs beside the picture: nothing to draw"
        )
    grid = _grid(original, plan)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files, left = [], 0
    for number, path in enumerate(sources, 1):
        (answer,) = session.run([told], {item.name: picture(item, path)[None]})
        where = _where(np.asarray(answer)[0], told, grid)
        left = len(np.unique(where[where >= 0]))
        files.append(_write(path, where, target / f"{path.stem}.png"))
        tell(f"{path.name}: {left} of {where.size} ({number} of {len(sources)})")
    return Drawn(tuple(files), left, prod(grid))


def _plan(reduced: ModelLike) -> Plan:
    text = load(reduced).metadata_props.get("tokenrt.plan")
    if text is None:
        raise TokenrtError(
            "the reduced model does not say by which plan it was made: it was not made by tokenrt reduce"
        )
    return Plan.parse(text, "in the model's metadata")


def _input(original: ModelLike) -> Input:
    """The picture that the model takes."""
    graph = load(original).graph
    value = next((value for value in graph.inputs if value.name not in graph.initializers), None)
    if value is None or value.dtype is None:
        raise TokenrtError("the model has no input")
    dims = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return Input(str(value.name), value.dtype.numpy(), dims)


def _grid(original: ModelLike, plan: Plan) -> tuple[int, int]:
    """The layout of the tokens that are told of: those of the first transformer, or of an output."""
    grid = plan.outputs[0].grid if plan.outputs and not plan.sites else plan.grid
    grid = grid or prepare(original).structure.grid
    if grid is None or len(grid) != 2:
        raise TokenrtError(
            "the grid of the patches is not known, so that there is nothing to draw on: say it with --grid when reducing"
        )
    return grid[0], grid[1]


def _where(answer: Array, told: str, grid: tuple[int, int]) -> Array:
    """The token of each patch [h,w], -1 where it was dropped; protected tokens in front are no patches."""
    cells = prod(grid)
    if told == KEPT:
        where = np.full(cells, -1)
        where[answer] = np.arange(len(answer))
        return where.reshape(grid)
    if len(answer) < cells:
        raise TokenrtError(f"{len(answer)} tokens do not fill a grid of {grid[0]} x {grid[1]}")
    return answer[len(answer) - cells :].reshape(grid)


def _write(path: Path, where: Array, target: Path) -> Path:
    try:
        from PIL import Image
    except ImportError as cause:
        raise DependencyError("pillow", "demo", "drawing pictures") from cause
    with Image.open(path) as image:
        scale = max(1.0, SIDE / min(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    made = drawn(pixels, labels(where, *pixels.shape[:2]), where)
    with atomic(target) as temporary:
        Image.fromarray(made).save(temporary, format="PNG")
    return target
