"""What holds of a sound reduction whatever it removes, asked of the reduced model and of the original by running both.

A batch is pictures side by side: in another order they give the same outputs in that order, and each gives alone, or
in other company, what it gives in the batch. And the original, once brought to the form that reductions are made in,
gives what it gave. Where the original itself does otherwise, as one that normalises over the batch, the line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking import ties
from tokenrt.passes.checking.batches import Batch, Shot
from tokenrt.passes.checking.check_data import Array, Feed, Input
from tokenrt.passes.checking.choices import PREFIX
from tokenrt.passes.checking.shortened import joined
from tokenrt.passes.checking.ties import Choice
from tokenrt.passes.checking.verdict import FAILED, HELD, Property, allowed, apart, scale, silent
from tokenrt.passes.graph.canonicalize import Canonicalize
from tokenrt.passes.graph.interface import KEPT, MAP
from tokenrt.passes.graph.model import load, on_disk
from tokenrt.passes.ops import DOMAIN

Run = Mapping[str, Any]
Runner = Callable[[Feed], Run]

REPEATS, UNCHANGED = "repeats itself", "nothing removed"
PERMUTED, ALONE, CHANGED = "batch permuted", "pictures alone", "other pictures changed"

WHEN = {
    PERMUTED: "when the pictures of the batch change places",
    ALONE: "when a picture runs alone",
    CHANGED: "when the other pictures of the batch change",
}
SHOTS: Mapping[str, Callable[[Batch, int], tuple[Shot, ...]]] = {
    PERMUTED: Batch.permuted,
    ALONE: lambda batch, _: batch.alone(),
    CHANGED: lambda batch, _: batch.changed(),
}


@dataclass(frozen=True)
class Found:
    """The largest difference in one output: relative to what is allowed it decides which output a line names."""

    output: str
    number: float
    threshold: float
    picture: int = 0

    @property
    def ok(self) -> bool:
        return self.number <= self.threshold

    def __str__(self) -> str:
        return f"output {self.output!r} by {self.number:.1e}"


@dataclass(frozen=True)
class Original:
    """What the original does: its run of the batch, the outputs that are random, and by property how far each output moves.

    batch: or why there is none. An output without a batch axis has no number, and a property that the original does
    not run has the reason.
    """

    batch: Batch | str
    feed: Feed
    base: Run
    random: Mapping[str, float]
    moved: Mapping[str, Mapping[str, Found | None] | str]
    wide: float

    def judged(self, reduced: Run) -> tuple[list[str], list[str]]:
        """Outputs in which the original keeps its pictures apart, and why the others are left out.

        reduced: the outputs of the reduced model for the batch.
        """
        told = KEPT in reduced or MAP in reduced
        judged, left = [], []
        for output, value in self.base.items():
            found = [moved[output] for moved in self.moved.values() if not isinstance(moved, str)]
            mixed = [each.number for each in found if each is not None and not each.ok]
            if output in self.random:
                left.append(f"output {output!r} of the original is random")
            elif told and output in reduced and joined(value.shape, np.shape(reduced[output])):
                left.append(f"output {output!r} of the reduced model is one sequence of all pictures")
            elif None in found:
                left.append(f"output {output!r} has no batch axis")
            elif mixed:
                left.append(
                    f"the original mixes its pictures in output {output!r} (by {max(mixed):.1e} of its largest entry), or "
                    "its first axis counts something else"
                )
            else:
                judged.append(output)
        return judged, left


@dataclass(frozen=True)
class Questions:
    """What is asked of both models, of each while its session lives.

    batch: or why there is none. whole: the inputs of a run without one. seed: of the order of the pictures. choices:
    those of the reduced model, which its runs tell. wide: what rounding may change in the outputs of either.
    """

    batch: Batch | str
    whole: Feed
    seed: int
    choices: Sequence[Choice]
    wide: tuple[float, float]

    def ask(self, answers: dict[str, Any], name: str, run: Runner, first: Run) -> None:
        """Note what one of the models answers, the original first. first: its outputs for `whole`."""
        known = None if isinstance(self.batch, Batch) and self.batch.feed is not self.whole else first
        if name == "original":
            answers[name] = self.original(run, known)
        elif name == "reduced":
            answers[name] = self.reduced(answers["original"], run, known)

    def original(self, run: Runner, known: Run | None) -> Original:
        """known: its outputs for the batch, where they are known already."""
        batch, feed, wide = self.batch, self.whole, self.wide[0]
        if isinstance(batch, Batch):
            feed = batch.feed
            try:
                known = known or run(feed)
            except Exception as cause:
                batch, feed = (
                    f"the original does not run with {batch.size} pictures: {_brief(cause)}",
                    self.whole,
                )
        base = _plain(known or run(feed))
        again = {name: (_between(base[name], output), output) for name, output in _plain(run(feed)).items()}
        random = {name: far for name, (far, output) in again.items() if far > allowed(output, wide)}
        moved: dict[str, Mapping[str, Found | None] | str] = {}
        if isinstance(batch, Batch):
            moved[PERMUTED] = _moved(run, base, batch, PERMUTED, self.seed, wide)
            alone = _moved(run, base, batch, ALONE, self.seed, wide)
            if isinstance(alone, str):
                # A fixed batch, or a model that takes no batch of one though its batch is free.
                moved[CHANGED] = _moved(run, base, batch, CHANGED, self.seed, wide)
            else:
                moved[ALONE] = alone
        return Original(batch, feed, base, random, moved, wide)

    def reduced(self, original: Original, run: Runner, known: Run | None) -> list[Property]:
        """The lines of the check."""
        batch, wide = original.batch, self.wide[1]
        if isinstance(batch, str):
            lines = [silent(name, batch) for name in (PERMUTED, ALONE)]
            return [_repeats(original, run, self.whole, known), *lines]
        try:
            base = known or run(batch.feed)
        except Exception as cause:
            told = f"the reduced model does not run with {batch.size} pictures, the original does: {_brief(cause)}"
            return [Property(PERMUTED, FAILED, None, wide, told)]
        lines, judged = [_repeats(original, run, batch.feed, base)], original.judged(base)
        for name, moved in original.moved.items():
            if isinstance(moved, str):
                lines.append(silent(name, f"the original does not run {WHEN[name]}: {moved}"))
            else:
                shots = SHOTS[name](batch, self.seed)
                lines.append(_kept(name, moved, judged, self.choices, (batch, base, shots), run, wide))
        return lines


def _moved(
    run: Runner, base: Run, batch: Batch, name: str, seed: int, wide: float
) -> Mapping[str, Found | None] | str:
    """By output, how far the pictures move in the runs of a property; or why these are not made."""
    found: dict[str, Found | None] = {}
    shots = SHOTS[name](batch, seed)
    for shot in shots:
        try:
            outputs = run(shot.feed)
        except Exception as cause:
            return _brief(cause)
        for output, value in base.items():
            moved = _shifted(output, value, outputs[output], batch.size, shot, shot.pairs, wide)
            known = found.get(output, moved)
            found[output] = _worse(known, moved) if known and moved else None
    return found if shots else "its batch is fixed"


def _repeats(original: Original, run: Runner, feed: Feed, base: Run | None) -> Property:
    if not original.random:
        return Property(REPEATS, HELD, None, None, "the original gives the same outputs for the same inputs")
    first, again = base or run(feed), run(feed)
    frozen = [
        name
        for name in original.random
        if name in again and np.array_equal(np.asarray(first[name]), np.asarray(again[name]), equal_nan=True)
    ]
    told = ", ".join(f"{name!r} by {moved:.1e}" for name, moved in original.random.items())
    why = f"the original is random: the same inputs give other outputs ({told} of the largest entry)"
    if not frozen:
        return silent(REPEATS, why)
    lost = f"the reduced model always gives the same {', '.join(map(repr, frozen))}: random numbers became constants"
    return Property(REPEATS, FAILED, 0.0, None, f"{why}; {lost}")


def _kept(
    name: str,
    moved: Mapping[str, Found | None],
    known: tuple[Sequence[str], Sequence[str]],
    choices: Sequence[Choice],
    pictures: tuple[Batch, Run, Sequence[Shot]],
    run: Runner,
    wide: float,
) -> Property:
    """Whether the reduced model keeps the pictures apart in the runs of a property, in the outputs that are judged."""
    (judged, left), (batch, base, shots) = known, pictures
    worst, tied, compared = None, 0, 0
    for shot in shots if judged else ():
        try:
            outputs = run(shot.feed)
        except Exception as cause:
            told = f"the reduced model does not run {WHEN[name]}, the original does: {_brief(cause)}"
            return Property(name, FAILED, None, wide, told)
        pairs = [
            (own, place)
            for own, place in shot.pairs
            if not ties.near(choices, base, outputs, (place, own), (batch.size, shot.size), wide)
        ]
        tied, compared = tied + len(shot.pairs) - len(pairs), compared + len(pairs)
        for output in judged if pairs else ():
            if output in outputs:
                arrays = np.asarray(base[output]), np.asarray(outputs[output])
                found = _shifted(output, *arrays, batch.size, shot, pairs, wide)
                found = found or Found(output, float("inf"), wide)
                worst = _worse(worst, found) if worst else found
    notes = [*left]
    if tied:
        notes.insert(
            0,
            f"{tied} of {tied + compared} not compared: tokens are chosen otherwise where scores tie within rounding",
        )
    if worst is None:
        return silent(name, "; ".join(notes) or "the models share no output with a batch axis")
    own = moved[worst.output]
    by_original = f"the original's by {own.number if own else 0:.1e}"
    if worst.ok:
        told = f"{compared} pictures; most {worst} of its largest entry, {by_original}"
        return Property(name, HELD, worst.number, worst.threshold, "; ".join((told, *notes)))
    told = f"{worst} of its largest entry {WHEN[name]} (at index {worst.picture} of the batch), {by_original}"
    told = f"{told}: the reduced model mixes or confuses the pictures of a batch"
    return Property(name, FAILED, worst.number, worst.threshold, "; ".join((told, *notes)))


def unchanged(
    original: Original, path: Path, inputs: Sequence[Input], run: Callable[[Path, Feed], Run]
) -> Property:
    """Whether the original in the form that reductions are made in, with nothing removed, gives what it gave.

    path: the original's file. run: runs the model of a file.
    """
    if len(original.random) == len(original.base):
        return silent(UNCHANGED, "the original is random")
    model = load(path)
    if any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        return silent(UNCHANGED, "the original is a reduced model itself")
    try:
        with on_disk(Canonicalize(_fixed(model, inputs))(model)) as made:
            outputs = run(made, original.feed)
    except TokenrtError as cause:
        return silent(UNCHANGED, f"the original has no form that reductions are made in: {cause}")
    except Exception as cause:
        told = f"the original does not run in the form that reductions are made in: {_brief(cause)}"
        return Property(UNCHANGED, FAILED, None, original.wide, told)
    # What that form lacks may be given back later: whether the reduced model has it, the interface says.
    found = [
        Found(name, _between(output, np.asarray(outputs[name])), allowed(output, original.wide))
        for name, output in original.base.items()
        if name not in original.random and name in outputs
    ]
    if not found:
        return silent(
            UNCHANGED, "the form that reductions are made in has none of the outputs that can be compared"
        )
    worst = max(found, key=lambda each: each.number / each.threshold)
    told = f"most {worst} of its largest entry between the original and the form that reductions are made in"
    return Property(UNCHANGED, HELD if worst.ok else FAILED, worst.number, worst.threshold, told)


def _fixed(model: ir.Model, inputs: Sequence[Input]) -> dict[str, tuple[int | str, ...]]:
    """The sizes behind the first axis that the original leaves open, as the reduced model fixes them."""
    values = {str(value.name): value for value in model.graph.inputs}
    made: dict[str, tuple[int | str, ...]] = {}
    for item in inputs:
        if item.name not in values:  # an input that a method added
            continue
        own = [*(values[item.name].shape or ())]
        if any(not isinstance(size, int) for size in own[1:]):
            made[item.name] = tuple("B" if size is None else size for size in item.dims)
    return made


def _between(one: Array, other: Array) -> float:
    return apart(one, other, scale(one)) if one.shape == other.shape else float("inf")


def _shifted(
    name: str, base: Array, other: Array, size: int, shot: Shot, pairs: Sequence[tuple[int, int]], wide: float
) -> Found | None:
    """How far the pictures of a run are from themselves in the batch; None for an output that does not count pictures."""
    if not (base.ndim and other.ndim) or len(base) % size or len(other) * size != len(base) * shot.size:
        return None
    if base.shape[1:] != other.shape[1:] or not base.size:
        return None
    first, again = base.reshape(size, -1), other.reshape(shot.size, -1)
    largest = scale(base)
    found = [(apart(first[place], again[own], largest), place) for own, place in pairs]
    number, place = max(found, default=(0.0, 0))
    return Found(name, number, allowed(base, wide), place)


def _worse(one: Found, other: Found) -> Found:
    """The one farther beyond what is allowed."""
    return max(one, other, key=lambda found: found.number / found.threshold)


def _plain(run: Run) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in run.items() if not name.startswith(PREFIX)}


def _brief(cause: Exception) -> str:
    return " ".join(str(cause).split())[:300]
