"""A real sshd on a free port of the loopback, with keys of its own, and a wire to it that can be cut."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SSH = shutil.which("ssh")


def missing() -> str:
    """Why there can be no sshd here; empty where there can be one."""
    if SSH is None:
        return "ssh is not installed (apt-get install openssh-client)"
    if not os.access(SSHD, os.X_OK):
        return "sshd is not installed (apt-get install openssh-server)"
    # As root it separates its privileges, and wants a folder for that which the service would make.
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        try:
            Path("/run/sshd").mkdir(mode=0o755)
        except OSError as cause:
            return f"sshd needs /run/sshd: {cause}"
    return ""


def key(path: Path) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL
    )
    return path


@dataclass
class Server:
    """The device: where it listens, the client's configuration of it, and what it has on its path."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    config: Path
    user: str = field(default_factory=getpass.getuser)

    @property
    def address(self) -> str:
        return f"{self.user}@127.0.0.1"

    def trust(self, host_key: Path, port: int) -> None:
        """Put a host key on record for a port."""
        public = host_key.with_suffix(".pub").read_text().split()
        with (self.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, path: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start sshd as the current user. `path` is PATH on the device."""
    folder.mkdir()
    folder.chmod(0o700)
    host_key, user_key = key(folder / "host_key"), key(folder / "user_key")
    shutil.copyfile(user_key.with_suffix(".pub"), folder / "authorized_keys")
    port = _free_port()
    settings = {"PATH": path, **(environment or {})}
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nPidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nLogLevel ERROR\n"
        f"SetEnv {' '.join(f'{name}={value}' for name, value in settings.items())}\n"
    )
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\nUserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nIdentitiesOnly yes\n"
        f"IdentityFile {user_key}\nIdentityAgent none\nLogLevel INFO\n"
    )
    log = (folder / "sshd.log").open("wb")
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
    )
    log.close()
    one = Server(folder, port, process, config)
    one.trust(host_key, port)
    try:
        _wait(one)
        yield one
    finally:
        one.stop()


def _wait(one: Server) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and one.process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", one.port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not start: {(one.folder / 'sshd.log').read_text()}")


class Wire:
    """Passes connections on to a port, and cuts them: the next one after so many bytes from the client, or all now."""

    def __init__(self, port: int) -> None:
        self.target, self.cuts, self.made, self.open = port, list[int](), 0, True
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def cut_after(self, *sizes: int) -> None:
        """Let the next connections break off after that many bytes from the client; 0 lets one live."""
        self.cuts.extend(sizes)

    def cut(self) -> None:
        for pair in self.pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.open = False
        # Closing alone would leave the call that waits for a connection waiting, and taking one.
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for pair in self.pairs:
            for end in pair:
                end.close()

    def _listen(self) -> None:
        while self.open:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                device = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            self.pairs.append((client, device))
            if not self.open:
                self.cut()
            self.made += 1
            limit = self.cuts.pop(0) if self.cuts else 0
            for source, sink, most in ((client, device, limit), (device, client, 0)):
                threading.Thread(target=self._pass, args=(source, sink, most), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, most: int) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if most and passed > most:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
