"""Writing files so that a failure never leaves half of one behind."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenrt.errors import TokenrtError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on any error.

    Raises: TokenrtError when the folder of `path` does not exist, cannot be written or is full, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise TokenrtError(f"cannot write {target}: it is a directory; name a file inside it")
    if not target.parent.is_dir():
        raise TokenrtError(
            f"cannot write {target}: the directory {target.parent} does not exist; create it first"
        )
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as cause:
        raise TokenrtError(
            f"cannot write {target}: no file can be made in {target.parent} ({cause.strerror}); name another folder"
        ) from cause
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as cause:
        if cause.errno in FULL:
            raise TokenrtError(f"cannot write {target}: {cause.strerror}; nothing was left there") from cause
        raise
    finally:
        temporary.unlink(missing_ok=True)


def folder(path: str | os.PathLike[str]) -> Path:
    """The folder of this name, made where it is not there. Raises: TokenrtError where nothing can be written there."""
    made = Path(path)
    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise TokenrtError(f"cannot make the folder {made}: {cause.strerror}; name another") from cause
    if not os.access(made, os.W_OK):
        raise TokenrtError(f"cannot write into the folder {made}; name another")
    return made
