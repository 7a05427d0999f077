"""Plans run by other processes, on this machine or on others, by way of Dask."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, cast

import psutil
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, get_worker

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.workers.exam import Exam
from tokenrt.perf.planner.workers.parcel import Parcel
from tokenrt.version import __version__

REACHED, ALONE = 15.0, 60.0
"""Seconds until a scheduler has to answer, and until a worker has to be there where there is none."""

LOOK = 2.0
"""Seconds after which it is looked whether there are workers, when no answer comes."""
ENDED = "every process that ran it ended: it may need more memory than they have"

Job = Future[Any]


class Carried(WorkerPlugin):
    """What every worker holds, one that joins or is started again too: a parcel, opened when the first plan comes."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel, self.name = parcel, f"tokenrt-{parcel.key[:16]}"
        self.exam: Exam | None = None

    def setup(self, worker: Any) -> None:
        self.lock, self.stack = Lock(), ExitStack()
        self.folder = Path(worker.local_directory)

    def teardown(self, worker: Any) -> None:
        self.stack.close()

    def judged(self, plan: Plan) -> Harm | str:
        """Its harm, or why it has none. Models are made one at a time, and run as many at a time as the worker has threads."""
        try:
            with self.lock:
                self.exam = exam = self.exam or self._opened()
                made = exam.made(plan)
            return exam.harm(made)
        except TokenrtError as error:
            return str(error)

    def _opened(self) -> Exam:
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenrt-", dir=self.folder))
        return self.stack.enter_context(self.parcel.opened(Path(folder)))


def _judged(name: str, plan: Plan) -> Harm | str:
    carried: Any = get_worker().plugins[name]
    return cast("Carried", carried).judged(plan)


def _version() -> str:
    return __version__


@dataclass(frozen=True)
class Cluster:
    """The workers of a scheduler, each of which holds what `name` stands for."""

    client: Client
    address: str
    name: str

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[int, Harm | TokenrtError]]:
        """As `Workers.run` says. Where a worker ends while it runs a plan, the plan runs on another.

        Dask gives up plans that were beside one that ends every worker too, so whatever it gives up runs once more, alone.
        Raises: TokenrtError when no worker is left.
        """
        suspects = list[tuple[int, Plan]]()
        yield from self._answers(enumerate(plans), suspects)
        for suspect in suspects:
            ends = list[tuple[int, Plan]]()
            yield from self._answers([suspect], ends)
            yield from ((place, TokenrtError(ENDED)) for place, _ in ends)

    def _answers(
        self, plans: Iterable[tuple[int, Plan]], suspects: list[tuple[int, Plan]]
    ) -> Iterator[tuple[int, Harm | TokenrtError]]:
        """Those that Dask does not give up; it is told in `suspects` which it does."""
        done = SimpleQueue[Job]()
        waiting = dict[Job, tuple[int, Plan]]()

        def answered() -> Iterator[tuple[int, Harm | TokenrtError]]:
            job = self._next(done, len(waiting))
            place, plan = waiting.pop(job)
            try:
                found = job.result()
            except KilledWorker:
                suspects.append((place, plan))
            except CancelledError as cause:
                raise self._gone(len(waiting) + 1) from cause
            else:
                yield place, TokenrtError(found) if isinstance(found, str) else found

        try:
            for place, plan in plans:
                job = self.client.submit(_judged, self.name, plan, pure=False)
                waiting[job] = place, plan
                job.add_done_callback(done.put)
                while not done.empty():
                    yield from answered()
            while waiting:
                yield from answered()
        finally:
            if waiting:
                self.client.cancel([*waiting])

    def _next(self, done: SimpleQueue[Job], waiting: int) -> Job:
        seen = time.monotonic()
        while True:
            with suppress(Empty):
                return done.get(timeout=LOOK)
            try:
                there = self.client.scheduler_info()["workers"]
            except OSError as cause:
                raise self._gone(waiting) from cause
            if there:
                seen = time.monotonic()
            elif time.monotonic() > seen + ALONE:
                raise self._gone(waiting)

    def _gone(self, waiting: int) -> TokenrtError:
        return TokenrtError(
            f"no worker is left at {self.address}, and plans wait ({waiting}): see what ended them, often that is memory, then "
            "start again with the same folder, which goes on from what was judged"
        )


@contextmanager
def cluster(address: str, parcel: Parcel) -> Iterator[Cluster]:
    """Give the workers of a scheduler what they need, and take it back at the end.

    Raises: TokenrtError where there is no scheduler, no worker, or one with another version of tokenrt.
    """
    try:
        client = Client(address, timeout=REACHED, set_as_default=False)
    except (OSError, ValueError) as cause:
        raise TokenrtError(f"no scheduler of Dask answers at {address}: {_line(cause)}") from cause
    with client:
        try:
            client.wait_for_workers(1, timeout=ALONE)
        except TimeoutError as cause:
            raise TokenrtError(
                f"the scheduler at {address} has no worker: start some with `dask worker {address}`"
            ) from cause
        _check(client)
        carried = Carried(parcel)
        client.register_plugin(carried)
        try:
            yield Cluster(client, address, carried.name)
        finally:
            with suppress(OSError, TimeoutError):
                scheduler: Any = client.scheduler
                client.sync(scheduler.unregister_worker_plugin, name=carried.name, callback_timeout=REACHED)


def _check(client: Client) -> None:
    try:
        versions = client.run(_version)
    except Exception as cause:
        raise TokenrtError(
            f"the workers cannot load tokenrt: install version {__version__} where they run ({_line(cause)})"
        ) from cause
    other = {version: worker for worker, version in versions.items() if version != __version__}
    for version, worker in other.items():
        raise TokenrtError(
            f"the worker at {worker} has tokenrt {version}, this is {__version__}: install the same"
        )


@contextmanager
def processes(count: int, threads: int) -> Iterator[str]:
    """The address of so many workers on this machine, each of which runs `threads` plans at a time.

    They are programs of their own, so that the caller's script is not read again. Each is started again when it ends.
    Raises: TokenrtError where they do not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tokenrt-", ignore_cleanup_errors=True) as folder,
        LocalCluster(
            n_workers=0,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as scheduler,
        (Path(folder) / "log").open("wb") as log,
    ):
        line = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address]
        line += ["--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard"]
        line += ["--local-directory", folder, "--death-timeout", str(ALONE)]
        started = [
            subprocess.Popen(line, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
            for _ in range(count)
        ]
        try:
            _wait(started, scheduler.scheduler, Path(log.name))
            yield scheduler.scheduler_address
        finally:
            _end(started)


def _wait(started: Sequence[subprocess.Popen[bytes]], scheduler: Any, log: Path) -> None:
    end = time.monotonic() + ALONE
    while not scheduler.workers:
        if any(each.poll() is not None for each in started) or time.monotonic() > end:
            told = log.read_text(errors="replace").strip().splitlines() or ["they say nothing"]
            raise TokenrtError(f"processes that run plans do not start on this machine: {told[-1][:300]}")
        time.sleep(0.05)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them and what they started, at once: they hold nothing that is still needed."""
    for process in started:
        with suppress(psutil.NoSuchProcess):
            started_by_it = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in started_by_it:
                child.kill()
        process.wait()


def _line(cause: BaseException) -> str:
    return (str(cause) or type(cause).__name__).splitlines()[0][:200]
