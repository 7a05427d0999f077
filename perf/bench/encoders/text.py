"""What text embeddings keep when tokens leave: two trained encoders on 200 sentences, every method that needs nothing else.

Every method leaves the same token counts behind each block, falling in equal steps to a share of the input's length, padding
counted: so the rows differ in what is chosen, and in nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.request import Request
from tokenrt.perf.bench.encoders import texts
from tokenrt.perf.bench.encoders.findings import FLOOR, Findings, Result
from tokenrt.perf.bench.encoders.reasons import OF_TEXT, outcome
from tokenrt.perf.bench.encoders.texts import Encoder
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.method_models import ordered
from tokenrt.perf.bench.quality.experiments import ALL, Outcome
from tokenrt.perf.bench.quality.kept_measures import Measure
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import Array
from tokenrt.perf.planner.workbench import Workbench

if TYPE_CHECKING:
    import onnx_ir as ir

SHARES = (0.75, 0.5, 0.35)
"""Of the tokens, what stays behind the last block."""

SEEDS = (0, 1, 2, 3, 4)
"""Draws of `random`, whose mean stands in the tables."""

NEAREST = 10
"""Neighbours that are compared."""

MEASURES: Mapping[str, Measure] = {
    "cosine": Measure(
        "Cosine",
        "Cosine of each sentence's embedding to that of the unreduced encoder; mean over sentences, larger is better.",
        more=True,
    ),
    "neighbours": Measure(
        "Neighbours",
        f"Of the {NEAREST} nearest other sentences (cosine) by the unreduced encoder, the share that is among the {NEAREST} "
        "nearest when all are embedded by the reduced one; mean over sentences, larger is better.",
        more=True,
    ),
}


@dataclass(frozen=True)
class Exam:
    """An encoder, prepared at each length of its sentences."""

    encoder: Encoder
    benches: Mapping[int, Workbench]

    @classmethod
    @contextmanager
    def every(cls) -> Iterator[list[Exam]]:
        """Both encoders. Raises: TokenrtError without the wheels."""
        with ExitStack() as stack:
            yield [
                cls(
                    encoder,
                    {
                        length: stack.enter_context(Workbench.of(encoder.model, shape=texts.shape(length)))
                        for length in texts.LENGTHS
                    },
                )
                for encoder in texts.encoders()
            ]

    @cached_property
    def full(self) -> Array:
        """Embeddings [n,C] before any token leaves."""
        return np.concatenate(
            [self._embedded(bench.original(), length) for length, bench in self.benches.items()]
        )

    def drawn(
        self, name: str, share: float, where: str = ALL, options: Mapping[str, Any] | None = None
    ) -> dict[str, Array]:
        """Every measure of one method at one share, of `random` in all its draws: [D,n] each. Raises: TokenrtError."""
        random = issubclass(methods.get(name), methods.get(FLOOR))
        every = [{"seed": seed} for seed in SEEDS] if random else [options or {}]
        found = [self._known(self._reduced(name, share, where, given)) for given in every]
        return {key: np.stack([draw[key] for draw in found]) for key in MEASURES}

    def _reduced(
        self, name: str, share: float, where: str, options: Mapping[str, Any]
    ) -> dict[int, ir.Model]:
        """The encoder reduced, at every length for itself. Raises: TokenrtError."""
        made = {}
        for length, bench in self.benches.items():
            blocks = len(bench.reducer.prepared.structure.blocks)
            layers = [*range(0 if where == ALL else blocks // 2, blocks)]
            falling = np.linspace(length, share * length, len(layers) + 1)[1:]
            budget = Budget.tokens([round(float(count)) for count in falling], layers)
            plan = bench.reducer.plan(name, budget, Request(options=options))
            made[length] = bench.reducer.reduce(plan).model
        return made

    def _known(self, made: Mapping[int, ir.Model]) -> dict[str, Array]:
        """What each sentence has of every measure by models of each length, out of the journal where it is: [n] each."""
        parts = [self.benches[length].weights.serialized(model).hex() for length, model in made.items()]
        runtime = f"onnxruntime {subject.version('onnxruntime-gpu')}"
        key, journal = digest(self.encoder.model, texts.SENTENCES, *parts, runtime), Journal.of("text")
        known = journal.get(key)
        if known is None:
            rows = [
                self._embedded(self.benches[length].session(model), length) for length, model in made.items()
            ]
            found = measures(np.concatenate(rows), self.full)
            known = journal.put(key, {name: each.tolist() for name, each in found.items()})
        return {name: np.array(each) for name, each in known.items()}

    def _embedded(self, session: Any, length: int) -> Array:
        """What a session makes of the sentences of a length: [n,C]."""
        feeds = dict(zip((texts.IDS, texts.MASK), texts.groups()[length], strict=True))
        return np.asarray(session.run([self.encoder.output], feeds)[0])


def run(names: Sequence[str] | None = None) -> Findings:
    """Measure every method that needs no weights and no more inputs, or those named. Raises: TokenrtError without the wheels."""
    with Exam.every() as exams:
        return asked(exams, names or ordered())


def asked(exams: Sequence[Exam], names: Sequence[str]) -> Findings:
    """The methods named, and what is tried with those that lose."""
    found, left_out = list[Result](), dict[str, str]()
    for name in names:
        if reason := unfit(name):
            left_out[name] = reason
            continue
        found.extend(measured(each, name, share) for each in exams for share in SHARES)
    so_far = findings(exams, found, [], left_out)
    outcomes = [
        outcome(each.drawn, each.encoder.name, experiment, key, so_far, SEEDS)
        for each in exams
        for key in MEASURES
        for experiment in OF_TEXT
    ]
    return findings(exams, found, outcomes, left_out)


def findings(
    exams: Sequence[Exam], found: Sequence[Result], outcomes: Sequence[Outcome], left_out: Mapping[str, str]
) -> Findings:
    """The page of what was found."""
    count, lengths = len(texts.sentences()), ", ".join(map(str, texts.LENGTHS))
    real = ", ".join(f"{texts.left(share):.0%}" for share in SHARES)
    told = [
        f"Every method in two trained encoders on {count} English sentences of 20 subjects, 7 to 36 tokens long: token counts "
        "fall in equal steps over all blocks to a share of the input's length. `random` is the mean of "
        f"{len(SEEDS)} draws. No model was trained or tuned for the reduction. Made by `python -m tokenrt.perf.bench text`.",
        f"A sentence runs at the least of the lengths {lengths} that holds it, padded behind its end, with its attention mask. "
        f"Padding leaves before any word, so that shares of {_shares(SHARES)} of the length leave {real} of a sentence's own "
        "tokens on average; the shorter ones lose few or none.",
    ]
    about = {each.encoder.name: each.encoder.told for each in exams}
    return Findings("Text embeddings", told, SHARES, MEASURES, about, found, outcomes, left_out)


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def unfit(name: str) -> str:
    """Why a method is not measured here; nothing where it is."""
    method = methods.get(name)
    if method.needs:
        return "needs trained weights, and there are none for it"
    if asked := [each for each in method.takes if not each.endswith("?")]:
        return f"reads {' and '.join(asked)}, which training or a host gives"
    if method.family == "video":
        return "chooses among frames, and a sentence has none"
    if "grid" in method.reads:
        return "takes tokens that lie in rows and columns, and those of a sentence do not"
    return ""


def measured(each: Exam, name: str, share: float) -> Result:
    """One method at one share, or why not."""
    try:
        found = each.drawn(name, share)
    except TokenrtError as refusal:
        return Result(each.encoder.name, name, share, {}, str(refusal).splitlines()[0])
    told = ", ".join(f"{MEASURES[key].value(found[key]):.3f}" for key in MEASURES)
    print(f"{each.encoder.name}, {name}, {share:.0%}: {told}", file=sys.stderr, flush=True)
    return Result(each.encoder.name, name, share, found)


def measures(found: Array, full: Array) -> dict[str, Array]:
    """Both measures [n] of embeddings [n,C] against those of the unreduced encoder."""
    found, full = _unit(found), _unit(full)
    near = [_nearest(rows @ rows.T) for rows in (found, full)]
    shared = [len({*a} & {*b}) / NEAREST for a, b in zip(*(each.tolist() for each in near), strict=True)]
    return {"cosine": (found * full).sum(1), "neighbours": np.array(shared)}


def _unit(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _nearest(cosines: Array) -> Array:
    """[n,NEAREST]: whose cosines [n,n] to each row are largest, itself left out."""
    apart = cosines - 3 * np.eye(len(cosines))
    return np.argsort(-apart, axis=1, kind="stable")[:, :NEAREST]
