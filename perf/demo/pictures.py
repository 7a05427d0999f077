"""The demonstration's pictures: saliency before and after side by side, and the tokens drawn on the photograph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.files import atomic
from tokenrt.perf.demo.subject import PATCH, SHARP, SIDE, Array, Photograph
from tokenrt.perf.pictures.draw import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = SIDE // PATCH
CELL = PATCH * SHARP

HEAT = "inferno"
INK, FAINT, PAPER = "#1b1b1f", "#63636d", "#ffffff"

COLUMN, GAP, HEADING, FOOT, SCALE = 2.35, 0.14, 0.58, 0.5, 0.5
"""Inches: a column, the space between two, the captions above a picture, the foot line, the colour scale."""

READING = {
    "merged": (
        "Merged: an outlined region is\none token, in the mean colour\nof its patches. A patch that\nstayed alone "
        "shows the\nphotograph."
    ),
    "pruned": "Pruned: dark patches were\ndropped on the way; the others\nreached the last block.",
}


@dataclass(frozen=True)
class Panel:
    """One model's view of a photograph.

    count: tokens at the last block. saliency: [SIDE,SIDE]. where: the token each patch ended in, [GRID,GRID],
    -1 when it was dropped; None for the unreduced model.
    """

    title: str
    note: str
    count: int
    saliency: Array
    where: Array | None = None

    @property
    def kind(self) -> str:
        """What happened to the patches: unreduced, merged or pruned."""
        if self.where is None:
            return "unreduced"
        return "pruned" if bool((self.where < 0).any()) else "merged"


def draw(photo: Photograph, panels: Sequence[Panel], path: str | os.PathLike[str]) -> None:
    """Write the picture of one photograph: photograph and saliency maps above, tokens below.

    The first panel is the unreduced model; all maps share its colour scale and theirs.
    """
    tall = COLUMN * photo.height / photo.width
    width = (len(panels) + 1) * (COLUMN + GAP) + GAP + SCALE
    height = 2 * (tall + HEADING) + FOOT
    figure = _figure(width, height)

    def place(column: int, row: int, across: float = COLUMN) -> tuple[float, float, float, float]:
        left, bottom = GAP * 1.5 + column * (COLUMN + GAP), FOOT + (1 - row) * (tall + HEADING)
        return left / width, bottom / height, across / width, tall / height

    upper = _axes(figure, place(0, 0))
    _caption(upper, photo.name, f"{GRID} x {GRID} patches and a class token")
    upper.imshow(photo.sharp, interpolation="antialiased")
    heat: Any = None
    brightest = _brightest(photo, panels)
    for column, panel in enumerate(panels, start=1):
        upper, lower = _axes(figure, place(column, 0)), _axes(figure, place(column, 1))
        _caption(upper, panel.title, panel.note)
        heat = _heat(upper, photo.crop(panel.saliency), brightest)
        _caption(lower, f"{panel.count} tokens", _told(panel))
        lower.imshow(tokens(photo, panel.where), interpolation="antialiased")
    scale = figure.add_axes(place(len(panels) + 1, 0, 0.08))
    figure.colorbar(heat, cax=scale)
    scale.tick_params(labelsize=7, colors=FAINT, length=2)
    for spine in scale.spines.values():
        spine.set_visible(False)

    left, bottom, _, high = place(0, 1)
    kinds = dict.fromkeys(panel.kind for panel in panels)
    figure.text(
        left,
        bottom + high,
        "\n\n".join(READING[kind] for kind in kinds if kind in READING),
        va="top",
        fontsize=9,
        color=FAINT,
        linespacing=1.4,
    )
    foot = "r: correlation with the saliency of the unreduced model, over the photograph. One colour scale for all maps."
    figure.text(left, 0.2 / height, foot, fontsize=8.5, color=FAINT)
    _write(figure, path)


def overview(
    rows: Sequence[tuple[Photograph, Panel, Panel]], heading: str, path: str | os.PathLike[str]
) -> None:
    """Write one sheet that shows the middle of each photograph: saliency before and after, and tokens left.

    rows: photograph, unreduced panel, reduced panel.
    """
    figure = _sheet(rows, (0, 2, 3, 1), halves=2, head=0.75)
    _heading(figure, heading, down=0.3)
    _write(figure, path)


def front(
    rows: Sequence[tuple[Photograph, Panel, Panel]],
    heading: str,
    measured: str,
    path: str | os.PathLike[str],
) -> None:
    """Write the picture of the front page as JPEG: the same of a few photographs, with what was measured of all.

    rows: as for `overview`.
    """
    figure = _sheet(rows, (0, 1, 2, 3), halves=1, head=0.95)
    _heading(figure, heading, down=0.26)
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.52 / height, measured, va="center", fontsize=9.5, color=FAINT)
    _write(figure, path, form="jpeg")


def _sheet(
    rows: Sequence[tuple[Photograph, Panel, Panel]], order: Sequence[int], *, halves: int, head: float
) -> Figure:
    """Photographs one below the other in `halves` halves, four pictures of each beside one another.

    order: which of photograph, tokens left, saliency before and saliency after stands where.
    """
    side, step, apart = 1.75, 1.83, 0.23
    high = -(-len(rows) // halves)
    width, height = halves * 4 * step + halves * apart + 0.09, head + high * step + 0.45
    figure = _figure(width, height)
    for number, (photo, before, after) in enumerate(rows):
        right, down = divmod(number, high)
        brightest = _brightest(photo, (before, after))
        images = (
            (photo.sharp, "photograph"),
            (tokens(photo, after.where), f"{after.count} tokens left"),
            (photo.crop(before.saliency), "saliency before"),
            (photo.crop(after.saliency), "saliency after"),
        )
        for column, which in enumerate(order):
            image, name = images[which]
            left = 0.2 + right * (4 * step + apart) + column * step
            bottom = height - head - down * step - side
            axes = _axes(figure, (left / width, bottom / height, side / width, side / height))
            if image.ndim == 3:
                axes.imshow(_middle(image), interpolation="antialiased")
            else:
                _heat(axes, _middle(image), brightest)
            if not down:
                axes.set_title(name, fontsize=9, color=FAINT, pad=5, loc="left")
            if name == "saliency after":
                _badge(axes, after.note)
    foot = "r: correlation of the two maps over the whole photograph"
    figure.text(0.2 / width, 0.18 / height, foot, fontsize=8.5, color=FAINT)
    return figure


def _heading(figure: Figure, text: str, down: float) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - down / height, text, va="center", fontsize=13, color=INK, weight="bold")


def tokens(photo: Photograph, where: Array | None) -> Array:
    """The photograph with its tokens drawn in, [SHARP*height,SHARP*width,3] uint8.

    Merged patches share their mean colour inside an outline; dropped ones are dark; without `where` every
    patch is outlined.
    """
    groups = np.arange(GRID * GRID).reshape(GRID, GRID) if where is None else where
    full = np.kron(groups, np.ones((CELL, CELL), np.int64))
    top, left = SHARP * photo.top, SHARP * photo.left
    label = full[top : top + SHARP * photo.height, left : left + SHARP * photo.width]
    return drawn(photo.sharp, label, groups, 0.35 if where is None else 0.8)


def _told(panel: Panel) -> str:
    if panel.where is None:
        return "nothing removed"
    if panel.kind == "pruned":
        return f"{int((panel.where < 0).sum())} patches dropped"
    return f"the largest stands for {int(np.bincount(panel.where.ravel()).max())} patches"


def _brightest(photo: Photograph, panels: Sequence[Panel]) -> float:
    return max(float(photo.crop(panel.saliency).max()) for panel in panels)


def _middle(image: Array) -> Array:
    """The largest square in the middle of [height,width,...]."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=140, facecolor=PAPER)


def _axes(figure: Figure, bounds: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(bounds)
    axes.set_axis_off()
    return axes


def _heat(axes: Axes, saliency: Array, brightest: float) -> Any:
    return axes.imshow(saliency, cmap=HEAT, vmin=0, vmax=brightest, interpolation="bilinear")


def _caption(axes: Axes, title: str, note: str) -> None:
    for text, up, size, colour, weight in ((title, 19, 10.5, INK, "bold"), (note, 5, 9, FAINT, "normal")):
        axes.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, up),
            textcoords="offset points",
            fontsize=size,
            color=colour,
            weight=weight,
        )


def _badge(axes: Axes, text: str) -> None:
    box = {"boxstyle": "round,pad=0.25", "facecolor": "black", "edgecolor": "none", "alpha": 0.65}
    axes.text(0.96, 0.05, text, transform=axes.transAxes, ha="right", fontsize=8, color="white", bbox=box)


def _write(figure: Figure, path: str | os.PathLike[str], form: str = "png") -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=form, facecolor=PAPER)
