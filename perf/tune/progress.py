"""What is told of a search while it runs: what was done, and how long the rest takes at the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tokenrt.perf.planner.pace import Pace


@dataclass
class Progress:
    """Counts plans. ahead: by stage, how many there may be, of those that have not begun; most: the same of the one that has."""

    tell: Callable[[str], None]
    pace: Pace
    ahead: dict[str, int] = field(default_factory=dict)
    most: int = 0

    def expect(self, stages: Mapping[str, int]) -> None:
        """These stages come, in this order; those of before are over."""
        self.ahead, self.most = dict(stages), 0

    def begin(self, stage: str) -> None:
        """A stage begins, and with it those before it are over."""
        while self.ahead:
            name = next(iter(self.ahead))
            self.most = self.ahead.pop(name)
            if name == stage:
                return

    def one(self, what: str) -> None:
        """One more plan is done."""
        self.most = max(self.most - 1, 0)
        self.tell(what + self.pace.left(self.most + sum(self.ahead.values())))
