"""The batch of a model's inputs, and the same pictures run in another order, alone, and in other company."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Feed, Input, feeds

MOST = 4
"""Pictures of one batch that are run alone."""

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Shot:
    """A run to compare with that of the whole batch: its pictures, and (place in it, place in the batch) of those compared."""

    feed: Feed
    size: int
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """Inputs of one run of `size` pictures; `inputs` count them on their first axis, the others serve all of them."""

    feed: Feed
    size: int
    inputs: frozenset[str]
    free: bool

    def take(self, places: Sequence[int]) -> Feed:
        """The run whose pictures are those at `places`."""
        chosen = np.asarray(places)
        return {
            name: _each(array, self.size)[chosen].reshape(-1, *array.shape[1:])
            if name in self.inputs
            else array
            for name, array in self.feed.items()
        }

    def permuted(self, seed: int) -> tuple[Shot, ...]:
        """All pictures in another, seeded order."""
        drawn, same = np.random.default_rng(seed), list(range(self.size))
        order = same
        while order == same:
            order = drawn.permutation(self.size).tolist()
        return (Shot(self.take(order), self.size, tuple(enumerate(order))),)

    def alone(self) -> tuple[Shot, ...]:
        """Each picture as a batch of one, of a large batch some of them. Empty where the batch is fixed."""
        if not self.free:
            return ()
        places = sorted({*np.linspace(0, self.size - 1, min(self.size, MOST)).round().astype(int).tolist()})
        return tuple(Shot(self.take([place]), 1, ((0, place),)) for place in places)

    def changed(self) -> tuple[Shot, ...]:
        """The pictures at even places with copies of them for the others, and those at odd places likewise."""
        made = []
        for rest in (0, 1):
            kept = range(rest, self.size, 2)
            filled = [p if p in kept else kept[p // 2 % len(kept)] for p in range(self.size)]
            made.append(Shot(self.take(filled), self.size, tuple((place, place) for place in kept)))
        return tuple(made)


def batch_of(
    inputs: Sequence[Input], feed: Sequence[Feed], model: ir.Model, outputs: Collection[Dims], seed: int
) -> Batch | str:
    """The batch of the first run, two pictures at the least; or why there is none, in words.

    A free first axis counts pictures. Of fixed ones the only size above 1 does, or the only one that an output has too.
    """
    run = feed[0]
    free = [item for item in inputs if item.dims and item.dims[0] is None]
    if free:
        sizes = {item.name: len(run[item.name]) for item in free}
        if len({*sizes.values()}) > 1:
            told = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
            return f"the inputs count other things on their first axes ({told})"
        made = Batch(run, next(iter(sizes.values())), frozenset(sizes), True)
        return _told_apart(made if made.size > 1 else _grown(made, free, feed, model, seed))
    sizes = {item.name: item.dims[0] for item in inputs if item.dims and item.dims[0] not in (None, 1)}
    counts = {size for size in sizes.values() if size is not None}
    if len(counts) > 1:
        counts &= {dims[0] for dims in outputs if dims and isinstance(dims[0], int)}
    if not sizes:
        return "the batch is fixed to one picture"
    if len(counts) != 1:
        told = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        return f"no one size counts pictures: the first axes are fixed to other sizes ({told})"
    (size,) = counts
    return _told_apart(Batch(run, size, frozenset(name for name, own in sizes.items() if own == size), False))


def _told_apart(batch: Batch | str) -> Batch | str:
    if isinstance(batch, str):
        return batch
    rows = [_each(batch.feed[name], batch.size) for name in sorted(batch.inputs)]
    if all((each == each[:1]).all() for each in rows):
        return "the pictures of the batch are all the same"
    return batch


def _grown(
    batch: Batch, free: Sequence[Input], feed: Sequence[Feed], model: ir.Model, seed: int
) -> Batch | str:
    """A batch of one with a second picture: the next run's first, or noise."""
    extra: Mapping[str, np.ndarray] = feed[1] if len(feed) > 1 else {}
    if any(extra.get(name, np.empty(0)).shape[1:] != batch.feed[name].shape[1:] for name in batch.inputs):
        wanted = [replace(item, dims=(None, *batch.feed[item.name].shape[1:])) for item in free]
        try:
            extra = feeds(wanted, model, data=None, batch=1, seed=seed + 1, samples=1)[0][0]
        except TokenrtError as cause:
            return f"the data has one picture, and no second one can be made: {cause}"
    rows = {name: np.concatenate([batch.feed[name], extra[name][:1]]) for name in batch.inputs}
    return replace(batch, feed={**batch.feed, **rows}, size=2)


def _each(array: np.ndarray, size: int) -> np.ndarray:
    """[size, rows of one picture, ...]."""
    return array.reshape(size, -1, *array.shape[1:])
