"""Why a method can keep less of an embedding than `random` does, each reason as an experiment."""

from __future__ import annotations

from tokenrt.perf.bench.quality.experiments import Experiment

EXPERIMENTS: tuple[Experiment, ...] = ()
