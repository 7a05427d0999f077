"""A file is written whole or not at all, and what stands in the way is one message."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic


def test_a_file_appears_whole_and_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("two")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert path.read_text() == "one"
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(TokenrtError, match=r"cannot write .*a\.txt: No space left on device"),
        atomic(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not [*tmp_path.iterdir()]


def test_another_failure_of_the_caller_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a.txt"):
        (tmp_path / "none").read_text()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    message = r"cannot write .*a\.txt: no file can be made in .* \(Permission denied\); name another folder"
    with pytest.raises(TokenrtError, match=message), atomic(tmp_path / "a.txt"):
        pass
