"""How fast plans are judged, and so how long the rest takes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

LAST = 24
"""Plans whose times count: later ones may cost more, or run beside more work of others."""


@dataclass
class Pace:
    """Seconds from one answer to the next while plans run; answers that were known before do not count."""

    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    since: float = 0.0

    def start(self) -> None:
        """Plans begin to run."""
        self.since = time.monotonic()

    def one(self) -> None:
        """One more is done."""
        now = time.monotonic()
        self.gaps.append(now - self.since)
        self.since = now

    def left(self, plans: int) -> str:
        """How long so many more take at the most, in words to add to a line; nothing while that is not known."""
        if plans <= 0 or not self.gaps:
            return ""
        seconds = plans * sum(self.gaps) / len(self.gaps)
        told = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 1):.0f} seconds"
        return f", at most some {told} left"
