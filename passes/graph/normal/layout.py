"""Axes as groups of atoms: what Transpose and Reshape make of the axes of scores, and how to go back.

An atom is a piece of an axis that nothing along the way divides; a Reshape that does divides the atom everywhere. An
axis of length 1 has no atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder
from tokenrt.passes.graph.shapes import BATCH, Dims

Axis = tuple[int, ...]
Axes = tuple[Axis, ...]


class Unfit(Exception):
    """Axes that cannot be laid out so; says why."""


class Atoms:
    """The atoms of one tensor's entries, by number: their sizes, and what became of those that were divided."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._parts: dict[int, Axis] = {}

    def new(self, dims: Dims) -> Axes:
        """Axes of these lengths, one atom each."""
        return tuple(() if size == 1 else (self._add(size),) for size in dims)

    def whole(self, axis: Axis) -> Axis:
        """The axis in the atoms of today."""
        return tuple(piece for atom in axis for piece in self._pieces(atom))

    def size(self, axis: Axis) -> int:
        return prod(self._sizes[atom] for atom in self.whole(axis))

    def dims(self, axes: Axes) -> Dims:
        return tuple(self.size(axis) for axis in axes)

    def regroup(self, axes: Axes, goal: Dims) -> Axes:
        """The axes behind a Reshape to `goal`. Raises: Unfit where two axes are divided across one another."""
        todo = [atom for axis in axes for atom in self.whole(axis)]
        result: list[Axis] = []
        for size in goal:
            axis: list[int] = []
            while size > 1 and todo:
                own = self._sizes[todo[0]]
                if size % own and own % size == 0:
                    todo[:1] = self._divide(todo[0], size)
                    own = size
                if size % own:
                    raise Unfit("a Reshape cuts its axes across one another")
                axis.append(todo.pop(0))
                size //= own
            result.append(tuple(axis))
        return tuple(result)

    def _add(self, size: int) -> int:
        self._sizes.append(size)
        return len(self._sizes) - 1

    def _pieces(self, atom: int) -> Axis:
        return self.whole(self._parts[atom]) if atom in self._parts else (atom,)

    def _divide(self, atom: int, first: int) -> Axis:
        self._parts[atom] = (self._add(first), self._add(self._sizes[atom] // first))
        return self._parts[atom]


def arrange(build: Builder, value: ir.Value, atoms: Atoms, source: Axes, goal: Axes) -> ir.Value:
    """A value that has, or broadcasts to, the axes `source`, as one that has or broadcasts to `goal`.

    Raises: Unfit where the two hold different atoms, or where the batch would have to be repeated.
    """
    dims = build.dims(value)
    if prod(dims) == 1 and len(dims) <= 1:
        return value
    source = source[max(0, len(source) - len(dims)) :]
    here = _present(atoms, dims, source)
    goal = tuple(atoms.whole(axis) for axis in goal)
    order = [atom for axis in goal for atom in axis if atom in here]
    if set(order) != set(here):
        raise Unfit("it keeps apart what another axis counts")
    single = all(len(atoms.whole(axis)) < 2 for axis in source) and len(source) == len(goal)
    if single and all(len(axis) < 2 for axis in goal):
        return build.transpose(value, _order(atoms, source, goal, dims))
    if order != here:
        split = build.reshape(value, [atoms.size((atom,)) for atom in here])
        value = build.transpose(split, [here.index(atom) for atom in order])
    if any(0 < len(set(axis) & set(here)) < len(axis) for axis in goal):
        value = _repeated(build, value, atoms, goal, here)
    return build.reshape(value, [atoms.size(axis) if set(axis) & set(here) else 1 for axis in goal])


def _present(atoms: Atoms, dims: Dims, axes: Axes) -> list[int]:
    """The atoms that a value really has: an axis of length 1 broadcasts."""
    if len(axes) != len(dims):
        raise Unfit("it has more axes than what it meets")
    found: list[int] = []
    for size, axis in zip(dims, axes, strict=True):
        if size not in (1, atoms.size(axis)):
            raise Unfit("its axes are no longer those of the product")
        if size != 1:
            found.extend(atoms.whole(axis))
    return found


def _order(atoms: Atoms, source: Axes, goal: Axes, dims: Dims) -> Sequence[int]:
    """The permutation between axes of one atom or none."""
    own = [atoms.whole(axis) if size != 1 else () for axis, size in zip(source, dims, strict=True)]
    where = {axis[0]: place for place, axis in enumerate(own) if axis}
    spare = iter([place for place, axis in enumerate(own) if not axis])
    return [where[axis[0]] if axis and axis[0] in where else next(spare) for axis in goal]


def _repeated(build: Builder, value: ir.Value, atoms: Atoms, goal: Axes, here: list[int]) -> ir.Value:
    """Atoms that are missing beside others of their axis are repeated."""
    flat = [(atom, bool(set(axis) & set(here))) for axis in goal for atom in axis]
    sizes = [atoms.size((atom,)) if atom in here else 1 for atom, _ in flat]
    full = [atoms.size((atom,)) if needed else 1 for atom, needed in flat]
    if any(after != before and after % BATCH == 0 for before, after in zip(sizes, full, strict=True)):
        raise Unfit("it is the same for every image where the batch is folded into another axis")
    return build.expand(build.reshape(value, sizes), full)
