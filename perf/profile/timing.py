"""Paired timing of ONNX Runtime sessions: every contestant runs in every round, so drift hits all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.graph.model import ModelLike

Run = Callable[[], object]
Feeds = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

RESAMPLES = 2000
CONFIDENCE = 0.95


QUOTED = 0.1
"""Width of the 95 % interval, as a share of a ratio, up to which a page may quote the ratio alone."""


@dataclass(frozen=True)
class Ratio:
    """Time of one contestant over that of the base: the median of the ratios of `rounds` rounds.

    low, high: 95 % bootstrap interval of that median. milliseconds, base_milliseconds: medians of one run.
    """

    name: str
    base: str
    median: float
    low: float
    high: float
    rounds: int
    milliseconds: float
    base_milliseconds: float

    @property
    def sure(self) -> bool:
        """Whether the interval is narrow enough to quote the ratio; on a busy machine it often is not."""
        return self.high - self.low <= QUOTED * self.median

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "base": self.base,
            "ratio": round(self.median, 4),
            "interval_95": [round(self.low, 4), round(self.high, 4)],
            "rounds": self.rounds,
            "milliseconds": round(self.milliseconds, 3),
            "base_milliseconds": round(self.base_milliseconds, 3),
        }


def default_threads() -> int:
    """Threads of a timed session: the processors this process may use, four at most."""
    return max(
        1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )


def session(model: ModelLike, *, threads: int | None = None, profile: str | None = None) -> Any:
    """An ONNX Runtime CPU session with a fixed number of threads, which spin while it runs and sleep when it does not.

    Spinning is what a session does by default, and small operators are much slower without it; a thread that went on
    spinning after its session's run would take time from the next contestant. profile: prefix of the profiler's
    file.

    Raises: TokenrtError with the runtime's first line when it does not take the model.
    """
    import onnxruntime

    from tokenrt.passes.checking.runtime import session_options
    from tokenrt.passes.graph.model import on_disk

    try:
        # As bytes a model would lose the weights that lie beside it.
        with on_disk(model) as path:
            options = settled(session_options(path), threads or default_threads())
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = profile
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        raise TokenrtError(
            f"ONNX Runtime does not take the model: {str(cause).splitlines()[0][:300]}"
        ) from cause


def settled(options: Any, threads: int) -> Any:
    """Session options with a fixed number of threads, which sleep when their session does not run."""
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def feeds(opened: Any, batch: int, seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Seeded inputs for a session: normal numbers, ones for integers and truth values; `batch` where an axis is open."""
    random = np.random.default_rng(seed)
    made = {}
    for value in opened.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        if kind in ("float", "double", "float16"):
            dtype = {"float": np.float32, "double": np.float64, "float16": np.float16}[kind]
            made[value.name] = random.standard_normal(shape).astype(dtype)
        else:
            made[value.name] = np.ones(shape, np.bool_ if kind == "bool" else np.dtype(kind))
    return made


def runner(opened: Any, inputs: Feeds) -> Run:
    """One run of a session on these inputs."""
    fed = dict(inputs)
    return lambda: opened.run(None, fed)


def compare(
    contestants: Mapping[str, Run],
    *,
    base: str,
    rounds: int = 20,
    seconds: float | None = None,
    warm_up: int = 2,
    seed: int = 0,
) -> dict[str, Ratio]:
    """Run all contestants in turn, in a new order each round, and compare each with `base` round by round.

    rounds: how many, or the most of them when `seconds` ends the timing earlier (never below three).
    """
    taken = _taken(contestants, rounds, seconds, warm_up, seed)
    return {
        name: _ratio(name, base, [own], [taken[base]], seed) for name, own in taken.items() if name != base
    }


def _taken(
    contestants: Mapping[str, Run], rounds: int, seconds: float | None, warm_up: int, seed: int
) -> dict[str, list[float]]:
    """Seconds of every run of every contestant, round by round."""
    for _ in range(warm_up):
        for run in contestants.values():
            run()
    random = np.random.default_rng(seed)
    names = [*contestants]
    taken: dict[str, list[float]] = {name: [] for name in names}
    end = None if seconds is None else time.perf_counter() + seconds
    for count in range(rounds):
        if end is not None and count >= 3 and time.perf_counter() > end:
            break
        for place in random.permutation(len(names)):
            start = time.perf_counter()
            contestants[names[place]]()
            taken[names[place]].append(time.perf_counter() - start)
    return taken


def compare_afresh(
    make: Callable[[], Mapping[str, Run]], *, base: str, rounds: int, repeats: int, seed: int = 0
) -> dict[str, Ratio]:
    """Compare as `compare` does, `repeats` times with contestants made anew; the ratio is the median of all rounds.

    Where a session's weights and buffers happen to lie in memory changes its speed by several percent for as long
    as it lives; only sessions made again average that out, so many repeats of few rounds say more than few of many.
    The interval is that of the repeats: whole repeats are drawn.
    """
    found = [_taken(make(), rounds, None, 2, seed + number) for number in range(repeats)]
    taken = {name: [repeat[name] for repeat in found] for name in found[0]}
    return {name: _ratio(name, base, own, taken[base], seed) for name, own in taken.items() if name != base}


def _ratio(
    name: str, base: str, own: Sequence[Sequence[float]], floor: Sequence[Sequence[float]], seed: int
) -> Ratio:
    """The ratio over all rounds. own, floor: seconds [repeats, rounds]."""
    ratios = np.asarray(own) / np.asarray(floor)
    low, high = interval(ratios if len(ratios) > 1 else ratios[0], seed)
    return Ratio(
        name,
        base,
        float(np.median(ratios)),
        low,
        high,
        ratios.size,
        float(np.median(own)) * 1e3,
        float(np.median(floor)) * 1e3,
    )


def interval(values: Sequence[float] | np.ndarray[Any, np.dtype[Any]], seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of the median that holds 95 % of the resamples of `values`, along their first axis."""
    sample = np.asarray(values)
    drawn = np.random.default_rng(seed).choice(sample, (RESAMPLES, len(sample)))
    medians = np.median(drawn.reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
