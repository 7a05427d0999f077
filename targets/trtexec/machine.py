"""The machines TensorRT's tools run on: this one, or another over ssh. A machine runs one line of shell at a time.

ssh is the system's own, with the user's configuration, keys and agent. It never asks for anything, and what it is
told of keys is not kept.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tokenrt.errors import DeviceError

DROPPED = 255
"""The status ssh ends with when the fault is its own, not that of the command."""

QUIET = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    # A line that went dead is noticed after 15 seconds.
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "RequestTTY=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
)

REFUSALS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "{name} shows another host key than the one on record. If it was set up anew, `ssh-keygen -R` takes the old key "
        "out; otherwise something else answers in its place"
    ),
    "Host key verification failed": (
        "the host key of {name} is not on record: run `ssh {name}` once by hand and accept it"
    ),
    "Permission denied": (
        "{name} takes none of the keys it was offered, and passwords are not asked for: `ssh-copy-id {name}`, or name "
        "a key with --identity"
    ),
    "Could not resolve hostname": "there is no host {name}: check --host, or the names in your ssh configuration",
    "Bad configuration option": "ssh refuses an option: {said}",
    "Can't open user config file": "ssh cannot read the file of --ssh-config: {said}",
}
"""What ssh says, and what the user is told; all of it stays true however often one tries."""

NOISE = re.compile(r"^(Warning:|Connection to .* closed|\*\*|@|debug\d)|^\s*$")


class Machine(Protocol):
    """Where a line of shell is run."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> str:
        """Where work folders are made, with a slash at the end; empty is where a command starts."""
        ...

    def command(self, line: str) -> list[str]:
        """The arguments of a process here that runs `line` there, with its standard streams."""
        ...

    def lost(self, status: int) -> bool:
        """Whether a process ended because the machine could not be reached."""
        ...

    def refusal(self, said: str) -> DeviceError | None:
        """Why no further try would help, when `said` is what a lost process left on standard error."""
        ...


@dataclass(frozen=True)
class Here:
    """This machine."""

    name: str = "this machine"
    folder: str = field(default_factory=lambda: f"{tempfile.gettempdir()}/")

    def command(self, line: str) -> list[str]:
        return ["sh", "-c", line]

    def lost(self, status: int) -> bool:
        return False

    def refusal(self, said: str) -> DeviceError | None:
        return None


@dataclass(frozen=True)
class Host:
    """Another machine, by ssh. `options` are ssh's own, as "ProxyJump=gate"; `folder` is where to work there."""

    name: str
    folder: str = ""
    port: int | None = None
    identity: Path | None = field(default=None, repr=False)
    config: Path | None = field(default=None, repr=False)
    options: tuple[str, ...] = field(default=(), repr=False)

    def command(self, line: str) -> list[str]:
        words = ["ssh", "-T"]
        words += [] if self.config is None else ["-F", str(self.config)]
        # ssh takes the first value it is given: the user's come first.
        for option in (*self.options, *QUIET):
            words += ["-o", option]
        words += [] if self.port is None else ["-p", str(self.port)]
        words += [] if self.identity is None else ["-i", str(self.identity)]
        return [*words, "--", self.name, line]

    def lost(self, status: int) -> bool:
        # Below zero: ssh itself was ended.
        return status == DROPPED or status < 0

    def refusal(self, said: str) -> DeviceError | None:
        for sign, told in REFUSALS.items():
            if sign in said:
                return DeviceError(told.format(name=self.name, said=last_words(said)))
        return None


def host(
    name: str,
    *,
    folder: str | None = None,
    port: int | None = None,
    identity: Path | None = None,
    config: Path | None = None,
    options: Iterable[str] = (),
) -> Host:
    """A machine as ssh names it, as "user@jetson". Raises: DeviceError for what ssh would take for something else."""
    if not re.fullmatch(r"[A-Za-z0-9_][^\s'\"`$;&|<>()\\]*", name):
        raise DeviceError(f"--host {name!r}: expected a host as ssh takes it, as in user@jetson")
    place = "" if folder is None else folder.rstrip("/") + "/"
    # The name goes through whatever shell the user has there.
    if not re.fullmatch(r"[A-Za-z0-9_./+@:,-]*", place) or place.startswith("-"):
        raise DeviceError(
            f"--device-folder {folder!r}: expected a path of letters, digits and . _ / + - @ : , without ~ or blanks"
        )
    for path, option in ((identity, "--identity"), (config, "--ssh-config")):
        if path is not None and not path.is_file():
            raise DeviceError(f"{option} {path}: no such file")
    return Host(name, place, port, identity, config, tuple(options))


def last_words(said: str) -> str:
    """The last line of an error output that says something."""
    lines = [line.strip() for line in said.splitlines() if not NOISE.search(line.strip())]
    return lines[-1] if lines else "it gives no reason"
