"""What a long benchmark has found so far, kept in the cache."""

from __future__ import annotations

from tokenrt.perf.bench.models import cache
from tokenrt.perf.planner import journal
from tokenrt.perf.planner.journal import digest as digest


class Journal(journal.Journal):
    """A journal that has a name in the cache."""

    @classmethod
    def of(cls, name: str) -> Journal:
        """The journal of this name in the cache."""
        return cls(cache() / "bench" / f"{name}.jsonl")
