"""Changes of a graph that change nothing it computes: one small function each, in a table that names them all.

A change gets an `Edit`, draws from its seed where and how it is made, and says whether there was a place for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fuzz.helpers.changes import attention, ends, files, layers, naming, passing, shapes, sums
from tests.fuzz.helpers.edit import Edit

Change = Callable[[Edit], bool]

ENDS: Mapping[str, Change] = ends.CHANGES
"""Changes of inputs and outputs, made before all others: they decide what is compared."""

CHANGES: Mapping[str, Change] = {
    name: change
    for module in (ends, naming, passing, sums, layers, attention, shapes, files)
    for name, change in module.CHANGES.items()
}
