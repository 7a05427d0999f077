"""The time that `make gpu` may take: what would begin behind it is left out and said to be."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """So many seconds from when it was made."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    def over(self) -> bool:
        return self.left() <= 0
