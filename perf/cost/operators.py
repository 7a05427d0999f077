"""The table of operators: from the sizes of a call to what its plugin launches.

Numbers of launches, blocks and threads are those of the launchers in plugins/kernels: `tests/perf/cost` compares them with
what the host build of the kernels would launch. A change there is a change here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tokenrt.errors import UnsupportedError
from tokenrt.perf.cost import choosing, clustering, merging, scoring
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.launch import Launch, Work
from tokenrt.perf.cost.sizes import Call

OPERATORS: Mapping[str, Callable[[Call], tuple[Launch, ...]]] = MappingProxyType(
    {
        "TokenSelect": choosing.select,
        "TokenGroupSelect": choosing.group_select,
        "TokenGreedySelect": choosing.greedy,
        "TokenCoverSelect": choosing.cover,
        "TokenDeterminantSelect": choosing.determinant,
        "TokenMatch": merging.match,
        "TokenCluster": clustering.cluster,
        "TokenPeaks": clustering.peaks,
        "TokenMeans": clustering.means,
        "TokenMedoids": clustering.medoids,
        "TokenCombine": merging.combine,
        "TokenMerge": merging.merge,
        "TokenRestore": merging.restore,
        "TokenScore": scoring.score,
    }
)


def work(
    operator: str,
    shapes: Sequence[Sequence[int]],
    attributes: Mapping[str, Any],
    item: int = 2,
    chip: Chip | None = None,
) -> Work:
    """What the plugin of an operator launches for inputs of these shapes, on a GPU or on any.

    item: bytes of an element of what keeps its own type. Raises: UnsupportedError for an operator without a plugin.
    """
    if operator not in OPERATORS:
        raise UnsupportedError(f"operator {operator} has no plugin; plugins: {', '.join(OPERATORS)}")
    return Work(operator, OPERATORS[operator](Call(shapes, attributes, item, chip)))
