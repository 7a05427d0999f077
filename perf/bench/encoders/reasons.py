"""Why a method can keep less than `random` does, each reason as an experiment in every encoder and measure in which one loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tokenrt.passes import methods
from tokenrt.perf.bench.encoders.findings import FLOOR, Findings, exam
from tokenrt.perf.bench.quality.altered import drawn
from tokenrt.perf.bench.quality.experiments import Experiment, Outcome, Trial
from tokenrt.perf.demo.subject import Array

BOTH = ""
SHORT = "all blocks, the output short"
_DRAWN = "numbers drawn in place of its score"

OF_TEXT: tuple[Experiment, ...] = (
    Experiment(
        BOTH, ("avit",), "it takes the first channel for a gate, which no training has made one here", _DRAWN, change=drawn,
    ),
    Experiment(
        BOTH, ("topvim",), "it scores the output of a state-space scan, which an attention has not", _DRAWN, change=drawn,
    ),
    Experiment(
        BOTH, ("kmedoids",),
        "its medoids start at, and move to, what most attention falls on, which in a text are its ends and full stops",
        "all tokens weigh alike (weight=equal)", options={"weight": "equal"},
    ),
)  # fmt: skip
OF_SPEECH: Mapping[str, tuple[Experiment, ...]] = {
    "features": (
        Experiment(
            BOTH, ("avit", "topvim"), "no training has made the channel a gate, or the values a score, that they read",
            _DRAWN, change=drawn,
        ),
    ),
    "words": (
        Experiment(
            BOTH, ("ltmp", "tofu", "ats", "avit", "evit", "topk", "topvim", "zerotprune"),
            "what is dropped comes back as it was when it left, which is nothing that the decoder can read, and it reads all",
            "the decoder reads the rows that are left (`--short all`), those of `random` too", changed_where=SHORT,
        ),
    ),
}  # fmt: skip
"""Each reason was tried on part of the shares before it was written down here; the page says what came of all."""


def outcome(
    measure: Callable[..., Mapping[str, Array]],
    encoder: str,
    experiment: Experiment,
    key: str,
    known: Findings,
    seeds: Sequence[int],
) -> Outcome:
    """An experiment with those of its methods that are surely below `random` by the measure `key`, where they are.

    measure: what each sentence has of every measure by a method, share, blocks and options: [D,n] each. seeds: draws of numbers
    in place of a score.
    """
    before = {(r.method, r.share): r.each for r in known.results if r.encoder == encoder}
    losers, trials, scored = known.losers(encoder, key), list[Trial](), known.measures[key].score
    for name in experiment.names:
        seeded = experiment.change is drawn
        others = [drawn(name, seed) for seed in seeds] if seeded else [experiment.change(name)]
        for share in losers.get(name, ()):
            changed = []
            for other in others:
                with methods.also(other):
                    changed.append(measure(other.name, share, experiment.later, experiment.options)[key])
            floor = measure(FLOOR, share, experiment.later, {})[key]
            rows = before[name, share][key], np.concatenate(changed), floor
            trials.append(Trial(name, share, *map(scored, rows)))
    return Outcome(replace(experiment, exam=exam(encoder, key)), trials, not known.measures[key].more)
