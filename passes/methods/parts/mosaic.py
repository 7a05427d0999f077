"""A picture cut into crops of one size, beside a thumbnail of all of it: which tokens of one show what of the other.

The crops lie in rows and columns, each of height x width tokens; a picture of another shape leaves a border free on two sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.ops.contract import Array


def rows_of(method: str, tiles: int, asked: int) -> int:
    """Rows of tiles: as asked, or of the most square layout where that is 0. Raises: PlanError where there is no such layout."""
    if asked and tiles % asked:
        raise PlanError(f"option rows={asked} of method {method!r}: {tiles} tiles have no such layout")
    return asked or max(rows for rows in range(1, tiles + 1) if tiles % rows == 0 and rows * rows <= tiles)


@dataclass(frozen=True)
class Mosaic:
    """rows x columns crops of height x width tokens; top and left: tokens of the border on either side."""

    rows: int
    columns: int
    height: int
    width: int
    top: int = 0
    left: int = 0

    @classmethod
    def of_picture(cls, rows: int, columns: int, height: int, width: int, wide: int, high: int) -> Mosaic:
        """The border that a picture of wide x high pixels leaves, which keeps its shape; 0 x 0: none."""
        full_height, full_width, top, left = rows * height, columns * width, 0, 0
        if wide and high and wide / high > full_width / full_height:
            top = (full_height - int(high * (full_width / wide))) // 2
        elif wide and high:
            left = (full_width - int(wide * (full_height / high))) // 2
        return cls(rows, columns, height, width, top, left)

    @property
    def crops(self) -> int:
        return self.rows * self.columns

    @property
    def each(self) -> int:
        """Tokens of a crop."""
        return self.height * self.width

    @cached_property
    def _places(self) -> Array:
        """Row and column in the whole of each crop's tokens: [2,P*n]."""
        row, column = np.indices((self.rows * self.height, self.columns * self.width))
        order = [grid.reshape(self.rows, self.height, self.columns, self.width) for grid in (row, column)]
        return np.stack([grid.transpose(0, 2, 1, 3).ravel() for grid in order])

    @cached_property
    def filled(self) -> Array:
        """Which of the crops' tokens show the picture: [P*n] bool."""
        row, column = self._places
        inside = (row >= self.top) & (row < self.rows * self.height - self.top)
        return np.asarray(inside & (column >= self.left) & (column < self.columns * self.width - self.left))

    @property
    def valid(self) -> tuple[int, ...]:
        """How many of its tokens show the picture, by crop."""
        return tuple(int(count) for count in self.filled.reshape(self.crops, self.each).sum(axis=1))

    @property
    def regions(self) -> Array:
        """Which crop shows what each of the thumbnail's tokens does: [n,P] float32; the last of a row or column has the rest."""
        row, column = np.indices((self.height, self.width)).reshape(2, -1)
        down = np.minimum(row // (self.height // self.rows), self.rows - 1)
        across = np.minimum(column // (self.width // self.columns), self.columns - 1)
        shows = np.equal((down * self.columns + across)[:, None], np.arange(self.crops))
        return np.asarray(shows, np.float32)

    @property
    def enlarging(self) -> tuple[Array, Array]:
        """Matrices [h',h] and [w,w'] float32 that resize the thumbnail's scores [h,w] to the part that shows the picture."""
        tall, wide = self._shown
        return _bilinear(self.height, tall), _bilinear(self.width, wide).T

    @property
    def places(self) -> Array:
        """The place of each of the crops' tokens in that part, 0 of the border: [P*n]."""
        row, column = self._places
        return np.asarray(np.where(self.filled, (row - self.top) * self._shown[1] + column - self.left, 0))

    @property
    def _shown(self) -> tuple[int, int]:
        return self.rows * self.height - 2 * self.top, self.columns * self.width - 2 * self.left


def _bilinear(before: int, after: int) -> Array:
    """Each of `after` points as a mean of two of `before`, corners not aligned: [after,before] float32."""
    where = np.maximum((np.arange(after) + 0.5) * before / after - 0.5, 0)
    low = where.astype(np.int64)
    high = np.minimum(low + 1, before - 1)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after), low), 1 - (where - low))
    np.add.at(matrix, (np.arange(after), high), where - low)
    return matrix.astype(np.float32)
