"""What is asked of whoever runs plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.harm import Harm


class Workers(Protocol):
    """Runs plans, several at a time.

    Every run of a model has one thread, so that its numbers do not depend on how many workers there are.
    """

    def run(self, plans: Iterable[Plan]) -> Iterator[tuple[int, Harm | TokenrtError]]:
        """The place of each plan among those asked, with its harm or why it has none, in the order in which they are done.

        Plans are taken as there is room for them: making the next one goes on while others run.
        """
