"""The measurements: every model on the same data, its answers beside the original's, its cost by its graph, all timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tokenrt.errors import InternalError, ShapeError, TokenrtError, UnsupportedError
from tokenrt.passes.checking.check import CheckReport, check
from tokenrt.passes.checking.check_data import Array, Feed, first, inputs_of
from tokenrt.passes.checking.emulate import comparable
from tokenrt.passes.checking.inputs import Input
from tokenrt.passes.checking.interface import told_apart
from tokenrt.passes.checking.runtime import kinds_of
from tokenrt.passes.graph.canonicalize import Axes, Canonicalize
from tokenrt.passes.graph.model import load, save
from tokenrt.perf.compare.contestants import Contestant
from tokenrt.perf.planner.costs import Cost, cost_of
from tokenrt.perf.planner.harm import MEASURES, Harm, check_finite, harm, kind_of
from tokenrt.perf.planner.workbench import Answer, answers
from tokenrt.perf.profile import timing

RUN, CHECKED = 4, 8
"""Samples of one run, and those that each model is checked on: `check` runs a model several times on each."""

BASE = ""
"""What the original is called where names of models are keys: none of these is empty."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What all models are run on. forms: by name the file that runs, which takes the original's types. inputs: of all of them."""

    original: Path
    forms: Mapping[str, Path]
    inputs: tuple[Input, ...]

    @classmethod
    def of(cls, original: Path, contestants: Sequence[Contestant], folder: Path) -> Setting:
        """Whether the models can be compared at all; those with halves at the door get a cast there, in `folder`.

        Raises: TokenrtError naming the model whose inputs or outputs are others.
        """
        forms, merged = dict[str, Path](), dict[str, Input]()
        _runs_here(original, "the original")
        for number, each in enumerate(contestants):
            _runs_here(each.file, each.name)
            with named(each.name):
                before, after = load(original), load(each.file)
                told_apart(before, after)
                _, cast = comparable(before, after)
                forms[each.name] = save(after, folder / f"cast{number}.onnx") if cast else each.file
                for item in inputs_of(before, after):
                    merged[item.name] = _merged(merged.get(item.name, item), item)
        return cls(original, forms, tuple(merged.values()))

    def batch(self, wanted: int | None) -> int:
        """Images at a time: as wanted, 1 when left out, or as the models have it fixed. Raises: ShapeError."""
        sizes = [item.dims[0] for item in self.inputs if item.dims]
        if None in sizes or not sizes:
            return wanted or 1
        fixed = max(size for size in sizes if size is not None)
        if wanted not in (None, fixed):
            raise ShapeError(f"--batch {wanted}: the models have a fixed batch of {fixed}")
        return fixed

    def served(self, run: Feed, batch: int) -> Feed:
        """One run of so many images, the first ones of this, again where it has fewer."""
        return {
            item.name: np.take(run[item.name], range(batch), axis=0, mode="wrap")
            if item.dims and item.dims[0] is None
            else run[item.name]
            for item in self.inputs
        }

    def shapes(self, run: Feed) -> dict[str, Axes]:
        """What fixes every axis but a batch that is open."""
        return {
            item.name: (("B" if item.dims[0] is None else item.dims[0]), *run[item.name].shape[1:])
            for item in self.inputs
            if item.dims
        }


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say in front of an error which model it is about."""
    try:
        yield
    except InternalError:
        raise
    except TokenrtError as error:
        raise TokenrtError(f"{name}: {error}") from error


def answered(model: Path, runs: Sequence[Feed], threads: int | None) -> list[Answer]:
    """The answers of a model to all runs; its session is gone afterwards."""
    return answers(timing.session(model, threads=threads), runs)


def harms(
    setting: Setting, runs: Sequence[Feed], threads: int | None, tell: Told
) -> tuple[dict[str, Harm], dict[str, str]]:
    """By name how far each model's answers lie from the original's, and by output how that is measured. Raises: TokenrtError."""
    tell("answering the data with the original")
    whole = answered(setting.original, runs, threads)
    check_finite(whole)
    found = dict[str, Harm]()
    for name, form in setting.forms.items():
        tell(f"answering the data with {name}")
        with named(name):
            found[name] = harm(whole, answered(form, runs, threads))
    outputs = dict.fromkeys(output for each in found.values() for output in each.outputs)
    return found, {name: MEASURES[kind_of(name, whole[0][name])] for name in outputs}


def checked(
    setting: Setting, contestants: Sequence[Contestant], runs: Sequence[Feed], tell: Told
) -> dict[str, CheckReport]:
    """By name what `check` says of each, on the first samples. Raises: TokenrtError where a model does not run."""
    few, found = [*first(runs, CHECKED)], {}
    for each in contestants:
        tell(f"checking {each.name}")
        own = {str(value.name) for path in (setting.original, each.file) for value in load(path).graph.inputs}
        data = {
            item.name: _joined([run[item.name] for run in few]) for item in setting.inputs if item.name in own
        }
        with named(each.name):
            found[each.name] = check(setting.original, each.file, data=data, batch=RUN)
    return found


def counted(model: Path, shapes: Mapping[str, Axes], batch: int) -> tuple[Cost | None, str]:
    """Work and memory of a file's graph; None and the reason where they cannot be counted."""
    try:
        read = load(model)
        opened = any(value.shape and not isinstance(value.shape[0], int) for value in read.graph.inputs)
        images = batch if opened else 1  # a graph of a fixed batch counts all of it
        found = cost_of(read, images)
        if found.uncounted:
            # Exporters compute shapes in the graph, which only the canonical form has as numbers.
            inputs = {str(value.name): value for value in read.graph.inputs}
            dynamic = {name: axes for name, axes in shapes.items() if name in inputs and _open(inputs[name])}
            found = cost_of(Canonicalize(dynamic)(read), images)
    except TokenrtError as error:
        return None, f"work and memory are not counted: {str(error).splitlines()[0]}"
    if found.uncounted:
        return None, f"work and memory are not counted: only a run knows the shapes at {found.uncounted[0]}"
    return replace(found, batch=batch), ""


def timed(
    setting: Setting, feed: Feed, threads: int | None, rounds: int, repeats: int, tell: Told
) -> dict[str, timing.Ratio]:
    """By name the time of each model over that of the original; all run in every round."""
    made = 0

    def make() -> dict[str, timing.Run]:
        nonlocal made
        made += 1
        tell(f"timing {len(setting.forms) + 1} models in turn, {made} of {repeats}")
        return {name: _runner(form, feed, threads) for name, form in forms.items()}

    forms = {BASE: setting.original, **setting.forms}
    return timing.compare_afresh(make, base=BASE, rounds=rounds, repeats=repeats)


def bytes_of(model: Path) -> int:
    """Of the file, and of those beside it that hold its weights."""
    weights = (value.const_value for value in load(model).graph.initializers.values())
    beside = {Path(tensor.path).resolve() for tensor in weights if isinstance(tensor, ir.ExternalTensor)}
    return sum(path.stat().st_size for path in {model.resolve(), *beside})


def _runner(model: Path, feed: Feed, threads: int | None) -> timing.Run:
    session = timing.session(model, threads=threads)
    return timing.runner(session, {value.name: feed[value.name] for value in session.get_inputs()})


def _runs_here(model: Path, name: str) -> None:
    if ir.DataType.BFLOAT16 in kinds_of(model):
        raise UnsupportedError(
            f"{name} is in bfloat16, which ONNX Runtime's CPU does not run: compare the form it was converted from"
        )


def _merged(known: Input, item: Input) -> Input:
    pairs = [*zip(known.dims, item.dims, strict=True)]
    if any(None not in (a, b) and a != b for a, b in pairs):
        raise ShapeError(f"input {item} is {known} in the models before: no data fits both")
    return Input(item.name, item.dtype, tuple(b if a is None else a for a, b in pairs))


def _joined(parts: Sequence[Array]) -> Array:
    """Runs as `check` takes them: one axis more where all are as large, else one behind the other."""
    same = len({part.shape for part in parts}) == 1
    return np.stack(parts) if same else np.concatenate(parts)


def _open(value: ir.Value) -> bool:
    return value.shape is not None and any(not isinstance(size, int) for size in [*value.shape][1:])
