"""What a long benchmark has found so far, kept in the cache, so that one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.perf.bench.models import cache


@dataclass(frozen=True)
class Journal:
    """Answers by key, a line of JSON each; whoever writes the key puts all into it that the answer depends on."""

    path: Path

    @classmethod
    def of(cls, name: str) -> Journal:
        """The journal of this name in the cache."""
        return cls(cache() / "bench" / f"{name}.jsonl")

    def get(self, key: str) -> Any:
        """The answer last written for a key, None where there is none."""
        if not self.path.exists():
            return None
        found = None
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line cut short when the benchmark was stopped
                continue
            found = entry["answer"] if entry["key"] == key else found
        return found

    def put(self, key: str, answer: Any) -> Any:
        """Write an answer down and return it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "answer": answer}) + "\n")
        return answer


def digest(*parts: Path | str) -> str:
    """One key for the bytes of files, with those of their weights beside them, and for text."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
            continue
        for file in (part, part.with_name(part.name + ".data")):
            if file.exists():
                found.update(file.read_bytes())
    return found.hexdigest()
