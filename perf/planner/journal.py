"""What long work has found so far, a line for each answer, so that work that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Journal:
    """Answers by key, a line of JSON each; whoever writes the key puts all into it that the answer depends on."""

    path: Path

    def get(self, key: str) -> Any:
        """The answer last written for a key, None where there is none."""
        return self.answers().get(key)

    def answers(self) -> dict[str, Any]:
        """The last answer of every key. A line that was cut short counts for nothing."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line cut short when the work was stopped
                continue
            found[entry["key"]] = entry["answer"]
        return found

    def put(self, key: str, answer: Any) -> Any:
        """Write an answer down and return it; a line that was cut short before is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        with self.path.open("ab+") as file:
            size = file.tell()
            file.seek(max(size - 1, 0))
            cut = file.read(1) not in (b"", b"\n")
            file.write(("\n" * cut + line).encode())
        return answer


def digest(*parts: Path | str | bytes) -> str:
    """One key for the bytes of files, with those of their weights beside them, and for text and bytes."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | bytes):
            found.update(part.encode() if isinstance(part, str) else part)
            continue
        for file in (part, part.with_name(part.name + ".data")):
            if file.exists():
                found.update(file.read_bytes())
    return found.hexdigest()
