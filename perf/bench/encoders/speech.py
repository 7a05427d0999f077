"""What Whisper still hears when tokens leave its encoder: features, and the text that the decoder makes of them.

Every method leaves the same token counts behind each block, falling in equal steps. Tokens that left are put back behind the
last, for the decoder as it is reads all 1500.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.request import Request
from tokenrt.perf.bench.encoders import voice, whisper
from tokenrt.perf.bench.encoders.findings import FLOOR, Findings, Result
from tokenrt.perf.bench.encoders.reasons import OF_SPEECH, SHORT, outcome
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.quality.experiments import ALL
from tokenrt.perf.bench.quality.kept_measures import Measure
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import Array
from tokenrt.perf.planner.workbench import Workbench

if TYPE_CHECKING:
    import onnx_ir as ir

NAME = "Whisper tiny"
SHARES = (0.75, 0.5)
SEEDS = (0, 1, 2)
"""Draws of `random`, whose mean stands in the tables."""

CLIPS = 8
METHODS = (
    "dymu", "ltmp", "mctf", "pitome", "tofu", "tome",
    "ats", "avit", "evit", "topk", "topvim", "zerotprune",
    "dpcknn", FLOOR, "slice",
)  # fmt: skip
"""Those that need neither weights nor a grid, without those that go round a loop for every token."""

MEASURES: Mapping[str, Measure] = {
    "features": Measure(
        "Features",
        "Relative distance (L2) of the features [1500,384] from the unreduced encoder's; mean over clips, smaller is better.",
    ),
    "words": Measure(
        "Words",
        "Word error rate of the decoded text against that of the unreduced encoder: words changed, added or left out, over "
        "words; mean over clips, smaller is better.",
    ),
}


@dataclass(frozen=True)
class Hearing:
    """The encoder, prepared, and what it is given to hear."""

    bench: Workbench
    listener: whisper.Listener
    clips: Sequence[voice.Clip]

    @cached_property
    def mels(self) -> list[Array]:
        """[80,3000] of every clip."""
        return [whisper.spectrogram(clip.sound) for clip in self.clips]

    @cached_property
    def full(self) -> tuple[Array, list[str]]:
        """Features [n,1500,384] and texts before any token leaves."""
        return self._heard(self.bench.original())

    def drawn(
        self, name: str, share: float, where: str = ALL, options: Mapping[str, Any] | None = None
    ) -> dict[str, Array]:
        """Every measure of one method at one share, of `random` in all its draws: [D,n] each. Raises: TokenrtError."""
        seeds = SEEDS if where == ALL else SEEDS[:1]
        every = [{"seed": seed} for seed in seeds] if name == FLOOR else [options or {}]
        found = [self._known(self._reduced(name, share, where, given)) for given in every]
        return {key: np.stack([draw[key] for draw in found]) for key in found[0]}

    def _reduced(self, name: str, share: float, where: str, options: Mapping[str, Any]) -> ir.Model:
        reducer = self.bench.reducer
        structure = reducer.prepared.structure
        falling = np.linspace(structure.tokens, share * structure.tokens, len(structure.blocks) + 1)[1:]
        budget = Budget.tokens([round(float(count)) for count in falling])
        asked = Request(options=options, short="all" if where == SHORT else None)
        return reducer.reduce(reducer.plan(name, budget, asked)).model

    def _known(self, model: ir.Model) -> dict[str, Array]:
        """What each clip has of every measure, out of the journal where it is: [n] each."""
        runtime = f"onnxruntime {subject.version('onnxruntime-gpu')}"
        sounds = digest(*(clip.sound.tobytes().hex() for clip in self.clips))
        key = digest(whisper.encoder(), self.bench.weights.serialized(model).hex(), sounds, runtime)
        journal = Journal.of("speech")
        known = journal.get(key)
        if known is None:
            found = self._measures(*self._heard(self.bench.session(model)))
            known = journal.put(key, {name: each.tolist() for name, each in found.items()})
        return {name: np.array(each) for name, each in known.items()}

    def _heard(self, session: Any) -> tuple[Array, list[str]]:
        """Features and texts of all clips by a session of the encoder."""
        name = session.get_inputs()[0].name
        rows = np.concatenate([session.run(None, {name: mel[None]})[0] for mel in self.mels])
        return rows, self.listener.texts(rows)

    def _measures(self, rows: Array, heard: Sequence[str]) -> dict[str, Array]:
        full, said = self.full
        pairs = [whisper.errors(a, b) for a, b in zip(said, heard, strict=True)]
        found = {"words": np.array([wrong / count for wrong, count in pairs])}
        if rows.shape == full.shape:
            found["features"] = np.linalg.norm(rows - full, axis=(1, 2)) / np.linalg.norm(full, axis=(1, 2))
        return found


def run(names: Sequence[str] | None = None) -> Findings:
    """Measure METHODS, or those named. Raises: TokenrtError without the wheels or where no speech can be made."""
    found = list[Result]()
    clips, listener = voice.clips(CLIPS), whisper.Listener.of_wheel()
    with Workbench.of(whisper.encoder()) as bench:
        hearing = Hearing(bench, listener, clips)
        for name in names or METHODS:
            found.extend(measured(hearing, name, share) for share in SHARES)
        own, so_far = _own(hearing), Findings("", (), SHARES, MEASURES, {NAME: ""}, found)
        outcomes = [
            outcome(hearing.drawn, NAME, each, key, so_far, SEEDS[:1])
            for key in MEASURES
            for each in OF_SPEECH[key]
        ]
    seconds = sum(len(clip.sound) for clip in clips) / whisper.RATE
    wheels = [f"{wheel.package} {wheel.version}" for wheel in (whisper.WHEEL, voice.WHEEL)]
    told = [
        f"The encoder of Whisper tiny (English), of the wheel {wheels[0]}, on {CLIPS} clips of up to {voice.SECONDS} s, "
        f"{seconds:.0f} s of speech in all, which eSpeak NG (the wheel {wheels[1]}) makes of the sentences of "
        f"[text embeddings](text.md) in {len(voice.VOICES)} accents. Of 1500 tokens, counts fall in equal steps over all blocks "
        "to a share behind the last, and tokens that left are put back for the decoder: merged ones as what they became, "
        f"dropped ones as they were. `random` is the mean of {len(SEEDS)} draws. Nothing was trained or tuned for the "
        "reduction. Made by `python -m tokenrt.perf.bench speech`.",
        f"Unreduced, {own:.0%} of the spoken words are heard wrongly: a machine's voice is not what Whisper was trained "
        "on. What is measured below is agreement with the unreduced encoder, not with what was said.",
    ]
    about = {
        NAME: "Four layers, 1500 tokens of 20 ms, 384 channels; the decoder takes the likeliest word each time."
    }
    return Findings("Speech", told, SHARES, MEASURES, about, found, outcomes, items="clips")


def _own(hearing: Hearing) -> float:
    """The word error rate of the unreduced encoder against what was said, over all clips."""
    pairs = [
        whisper.errors(clip.said, text) for clip, text in zip(hearing.clips, hearing.full[1], strict=True)
    ]
    return sum(wrong for wrong, _ in pairs) / sum(count for _, count in pairs)


def measured(hearing: Hearing, name: str, share: float) -> Result:
    """One method at one share, or why not."""
    try:
        found = hearing.drawn(name, share)
    except TokenrtError as refusal:
        return Result(NAME, name, share, {}, str(refusal).splitlines()[0])
    told = ", ".join(f"{MEASURES[key].value(found[key]):.3f}" for key in MEASURES)
    print(f"{NAME}, {name}, {share:.0%}: {told}", file=sys.stderr, flush=True)
    return Result(NAME, name, share, found)
