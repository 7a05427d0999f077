"""A folder on a machine, from its making to its removal: files go in, steps run, results come back whole or not at all.

`device.sh` does the other half. An upload goes on where it broke off, the steps run apart from the connection, and
results count once a list of checksums says that all of them are there. The folder goes when we leave, whatever
happened; where we cannot reach the machine any more, the guard in the folder removes it.
"""

from __future__ import annotations

import os
import secrets
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from tokenrt.errors import BuildError, DeviceError
from tokenrt.targets.engines.cache import sha256
from tokenrt.targets.trtexec.machine import Machine, last_words

SCRIPT = Path(__file__).with_name("device.sh")
LEASE_S = 900
"""How long the folder of somebody who has gone stays."""
PATIENCE_S = 120
"""How long a lost connection is tried again; shorter than the lease."""
PULSE_S = 0.5
STALLED_S = 60
CHUNK = 1 << 20
TIMED_OUT = (124, 137)
UNWRITTEN = 3
LITTLE_KIB = 1024

Progress = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One command there, with its bound in seconds. An empty command looks at power mode and clocks."""

    label: str
    command: tuple[str, ...] = ()
    seconds: int = 60

    def line(self) -> str:
        if not self.command:
            return "describe"
        return shlex.join(["step", self.label, str(self.seconds), *self.command])


class Dropped(Exception):
    """The machine was not reached, or not any more; another try may."""


class Workplace:
    """The folder while it is there. Names of files in it are plain, without blanks."""

    def __init__(self, machine: Machine, *, patience: float, tell: Progress) -> None:
        self.machine, self.patience, self.tell = machine, patience, tell
        self.place = f"{machine.folder}.tokenrt-{secrets.token_hex(6)}"
        self.facts: Mapping[str, str] = {}
        self.met = False

    def begin(self, trtexec: str, lease: int) -> None:
        """Make the folder. `facts` then hold its path, free_kib, and trtexec with its banner where there is one."""
        text = SCRIPT.read_text(encoding="utf-8")
        made = shlex.join(["sh", f"{self.place}/device.sh", "begin", str(lease), trtexec])
        # In braces: nothing runs before all of it has come through.
        feed = f"{{\nmkdir -p {self.place} && cat >{self.place}/device.sh <<'END_OF_SCRIPT' && {made}\n{text}END_OF_SCRIPT\n}}\n"
        self.facts = _pairs(self._persist(lambda: self._once("sh -s", feed.encode())))
        if lacking := self.facts.get("missing"):
            raise DeviceError(f"{self.machine.name} has no {lacking}, which the work there needs")

    def put(self, path: Path, name: str) -> None:
        """Copy a file there, from where an earlier try broke off."""
        digest = sha256(path)
        size = path.stat().st_size
        if size > 1024 * (free := int(self.facts.get("free_kib") or 0)):
            raise DeviceError(
                f"{self.machine.name} has {free // 1024} MiB free where {path.name} with its {size >> 20} MiB is to go; "
                "make room there, or name another disk with --device-folder"
            )
        for _ in range(2):
            self._persist(lambda: self._send(path, name, size))
            if self.ask("seal", name, digest).endswith("whole"):
                return
        raise DeviceError(f"{path.name} arrives damaged on {self.machine.name}, twice; nothing was run")

    def run(self, steps: Iterable[Step]) -> None:
        """Run the steps, one after the other until one fails, apart from any connection.

        Raises: BuildError with what the step that failed said last.
        """
        listed = tuple(steps)
        with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
            script = Path(folder) / "steps"
            script.write_text("".join(f"{step.line()}\n" for step in listed), encoding="utf-8")
            self.put(script, "steps")
        self.ask("start")
        ahead = [step.label for step in listed]
        status, label = self._persist(lambda: self._follow(ahead))
        if status:
            bound = next((step.seconds for step in listed if step.label == label), 0)
            raise BuildError(self._failure(status, label, bound))

    def results(self) -> dict[str, str]:
        """The results by name, with the checksum of each."""
        lines = (line.split(maxsplit=1) for line in self.ask("give", "manifest", "0").splitlines())
        return {name: digest for digest, name in lines}

    def fetch(self, folder: Path, only: Iterable[str] | None = None) -> list[Path]:
        """Copy the results into a folder here. Raises: DeviceError when one of them is missing or not whole."""
        listed = self.results()
        found = []
        for name in listed if only is None else only:
            if name not in listed:
                raise DeviceError(
                    f"trtexec on {self.machine.name} ended well and did not write {name}; nothing was taken"
                )
            path = folder / name
            self.tell(f"bringing {name} back")
            self._persist(partial(self._receive, f"out/{name}", path))
            if sha256(path) != listed[name]:
                raise DeviceError(f"{name} came back damaged from {self.machine.name}; nothing was taken")
            found.append(path)
        return found

    def ask(self, verb: str, *words: str) -> str:
        """What a verb of device.sh answers."""
        return self._persist(lambda: self._once(self._line(verb, *words))).strip("\n")

    def log(self, step: str) -> str:
        """What a step printed; steps count from 1, and those without a command do not count."""
        return self.ask("give", f"log/{step}", "0")

    def end(self) -> None:
        """Remove the folder, with whatever still runs in it."""
        self._persist(lambda: self._once(f"test ! -e {self.place} || {self._line('remove')}"))

    def _line(self, verb: str, *words: str) -> str:
        return shlex.join(["sh", f"{self.place}/device.sh", verb, *words])

    def _persist(self, action: Callable[[], T]) -> T:
        """Try again while the connection is lost, once it was there at all."""
        end = None
        while True:
            try:
                done = action()
            except Dropped as drop:
                now = time.monotonic()
                end = end or now + self.patience
                if not self.met:
                    raise DeviceError(f"{self.machine.name} cannot be reached: {drop}") from drop
                if now > end:
                    raise DeviceError(
                        f"the connection to {self.machine.name} was lost and did not come back within "
                        f"{self.patience:.0f} s: {drop}. Nothing was taken, and {LEASE_S // 60} minutes from now nothing is "
                        "left there: run the same command again"
                    ) from drop
                self.tell(f"the connection to {self.machine.name} was lost, trying again")
                time.sleep(min(1.0, self.patience / 10))
            else:
                self.met = True
                return done

    def _once(self, line: str, feed: bytes = b"") -> str:
        with self._process(line) as (process, noise):
            try:
                answer, _ = process.communicate(feed, timeout=3 * STALLED_S)
            except subprocess.TimeoutExpired:
                raise Dropped(f"no answer within {3 * STALLED_S} s") from None
            self._judge(process.returncode, noise)
        return answer.decode(errors="replace")

    def _send(self, path: Path, name: str, size: int) -> None:
        held = int(self._once(self._line("held", name)).split()[-1])
        if held >= size:
            return
        with self._process(self._line("take", name, str(held))) as (process, noise), path.open("rb") as file:
            file.seek(held)
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                while chunk := file.read(CHUNK):
                    process.stdin.write(chunk)
                    if size > 8 * CHUNK:
                        self.tell(f"copying {path.name}: {file.tell() >> 20} of {size >> 20} MiB")
            with suppress(BrokenPipeError):
                process.stdin.close()
            self._judge(process.wait(), noise)

    def _receive(self, name: str, path: Path) -> None:
        held = path.stat().st_size if path.exists() else 0
        with self._process(self._line("give", name, str(held))) as (process, noise), path.open("ab") as file:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                file.write(chunk)
            self._judge(process.wait(), noise)

    def _follow(self, ahead: list[str]) -> tuple[int, str]:
        """The status the work ended with, and the label of its last step.

        ahead: the labels not told yet, in order. A step that came and went between two looks is told as well.
        """
        label = ""
        with self._process(self._line("follow")) as (process, noise):
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                while True:
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                    word, _, rest = _answer(process).partition(" ")
                    if word == "now" and rest and rest != label:
                        label = rest
                        self._tell_to(label, ahead)
                    if word == "done":
                        label = self.ask("give", "now", "0") if int(rest) else [label, *ahead][-1]
                        self._tell_to(label, ahead)
                        return int(rest), label
                    if word == "gone":
                        raise BuildError(
                            f"the work on {self.machine.name} ended in the middle of {label!r} without a word: somebody "
                            "ended it, the memory ran out, or the disk is full"
                        )
                    if not word:
                        break
                    time.sleep(PULSE_S)
            process.kill()
            self._judge(process.wait(), noise)
            raise Dropped(last_words(_read(noise)))

    def _tell_to(self, label: str, ahead: list[str]) -> None:
        """Tell the steps up to the one of that label, unless they are told."""
        for _ in range(ahead.index(label) + 1 if label in ahead else 0):
            self.tell(ahead.pop(0))

    @contextmanager
    def _process(self, line: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        # A file, not a pipe: a master connection that the user's ssh shares may hold on to it for hours.
        with tempfile.TemporaryFile() as noise:
            try:
                process = subprocess.Popen(
                    self.machine.command(line),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=noise,
                    env={**os.environ, "LC_ALL": "C"},
                )
            except FileNotFoundError as cause:
                raise DeviceError(
                    f"there is no {cause.filename} here; install it, as apt-get install openssh-client"
                ) from cause
            try:
                yield process, noise
            finally:
                process.kill()
                for pipe in (process.stdin, process.stdout):
                    # What could not be written is of no interest any more, and must not hide what is.
                    with suppress(BrokenPipeError):
                        pipe.close()  # type: ignore[union-attr]
                process.wait()

    def _judge(self, status: int, noise: IO[bytes]) -> None:
        if not status:
            return
        said = _read(noise)
        if self.machine.lost(status):
            raise self.machine.refusal(said) or Dropped(last_words(said))
        raise DeviceError(f"{self.machine.name}: {last_words(said)}")

    def _failure(self, status: int, label: str, bound: int) -> str:
        log, _, free = self.ask("last_log").rpartition("free_kib=")
        words = _complaint(log)
        where = f"{label} on {self.machine.name}"
        if status in TIMED_OUT:
            return f"{where} was ended after {bound} s without an end of its own; --timeout gives it longer. Last: {words}"
        if status == UNWRITTEN or int(free or LITTLE_KIB) < LITTLE_KIB:
            return f"{where} failed, and the disk there is full: make room, or name another with --device-folder. Last: {words}"
        return f"{where} failed with status {status}: {words}"


@contextmanager
def workplace(
    machine: Machine,
    *,
    trtexec: str = "",
    keep: bool = False,
    patience: float = PATIENCE_S,
    lease: int = LEASE_S,
    tell: Progress = lambda stage: None,
) -> Iterator[Workplace]:
    """A folder on `machine`, gone at the end unless `keep`.

    patience: seconds a lost connection is tried again. lease: seconds after which a folder nobody asks after goes.

    Raises: DeviceError when the machine is out of reach, in one line with the remedy.
    """
    work = Workplace(machine, patience=patience, tell=tell)
    tell(f"reaching {machine.name}")
    try:
        work.begin(trtexec, lease)
        yield work
    except BaseException:
        if work.met:
            # What went wrong first is what is told; the guard does what we could not.
            with suppress(DeviceError, KeyboardInterrupt):
                work.patience = min(patience, 10)
                work.end()
        raise
    if keep:
        tell(f"kept on {machine.name}: {work.ask('keep')}")
    else:
        work.end()


def _answer(process: subprocess.Popen[bytes]) -> str:
    """One line, or nothing when none comes."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], STALLED_S)[0]:
            return ""
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            return ""
        line += byte
    return line.decode(errors="replace").strip()


def _complaint(log: str) -> str:
    """What a log of trtexec ends in: its first errors, else its last line."""
    errors = [line.partition("[E]")[2].strip() for line in log.splitlines() if "[E]" in line]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "; ".join(list(dict.fromkeys(filter(None, errors)))[:4]) or (
        lines[-1] if lines else "it printed nothing"
    )


def _pairs(text: str) -> dict[str, str]:
    # What the login shell prints of its own has no place here.
    known = ("folder", "free_kib", "trtexec", "banner", "missing")
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs if name in known}


def _read(noise: IO[bytes]) -> str:
    noise.seek(0)
    return noise.read().decode(errors="replace")
