"""Which workers are asked for: the threads of this process, others on this machine, or those of a scheduler."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.perf.planner.workers.contract import Workers
from tokenrt.perf.planner.workers.exam import Exam
from tokenrt.perf.planner.workers.here import Here
from tokenrt.perf.planner.workers.parcel import Parcel

ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+")


def parse(workers: int | str | None) -> int | str | None:
    """A number of processes, the address of a scheduler, or None for this process. Raises: TokenrtError, DependencyError."""
    if workers is None:
        return None
    text = str(workers)
    if not (text.isdecimal() and int(text) > 0) and not ADDRESS.fullmatch(text):
        raise TokenrtError(
            f"--workers {text}: expected a number of processes from 1, or the address of a Dask scheduler, tcp://host:port"
        )
    if importlib.util.find_spec("distributed") is None:
        raise DependencyError("distributed", "workers", "--workers")
    return int(text) if text.isdecimal() else text


@contextmanager
def chosen(
    workers: int | str | None, exam: Exam, packed: Callable[[], Parcel], threads: int
) -> Iterator[Workers]:
    """Workers until the end, of what `parse` gives. threads: those that processes on this machine share. Raises: TokenrtError."""
    if workers is None:
        yield Here(exam, threads)
        return
    from tokenrt.perf.planner.workers import cluster

    if isinstance(workers, str):
        with cluster.cluster(workers, packed()) as found:
            yield found
        return
    with (
        cluster.processes(workers, max(threads // workers, 1)) as address,
        cluster.cluster(address, packed()) as found,
    ):
        yield found
