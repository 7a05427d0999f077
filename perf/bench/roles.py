"""What the time of a reduced model is spent on in ONNX Runtime, by what its nodes are there for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.perf.profile import node_profile, timing

MODEL = "the model itself"
ROLES = {
    "TokenMatch": "matching",
    "TokenMerge": "matching and merging",
    "TokenCombine": "merging",
    "TokenScore": "attention of some tokens",
    "TokenSelect": "choosing by score",
    "TokenCluster": "clustering",
    "TokenMeans": "clustering",
    "TokenMedoids": "clustering",
    "TokenPeaks": "clustering",
    "tokenrt_block": "the method's other steps",
    "tokenrt": "log size added to attention",
}
"""What the name of a node begins with or holds, first match wins -> what the node is there for."""

HEAD = ("role", "nodes:", "ms:", "share:", "most of it")


@dataclass(frozen=True)
class Share:
    """Time of the nodes with one role, in one run, and by operator."""

    role: str
    milliseconds: float
    nodes: int
    operators: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "milliseconds": round(self.milliseconds, 4),
            "nodes": self.nodes,
            "operators_milliseconds": {name: round(value, 4) for name, value in self._largest()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Share:
        """The share that `as_dict` wrote."""
        return cls(data["role"], data["milliseconds"], data["nodes"], data["operators_milliseconds"])

    def most(self, count: int = 4) -> str:
        """The operators that take most of it, with their milliseconds."""
        return ", ".join(f"{name} {value:.2f}" for name, value in self._largest()[:count])

    def _largest(self) -> list[tuple[str, float]]:
        return sorted(self.operators.items(), key=lambda item: -item[1])


def rows(shares: Sequence[Share]) -> list[list[str]]:
    """Cells of a table under HEAD."""
    total = sum(share.milliseconds for share in shares)
    return [
        [
            share.role,
            str(share.nodes),
            f"{share.milliseconds:.2f}",
            f"{share.milliseconds / total:.1%}",
            share.most(),
        ]
        for share in shares
    ]


def breakdown(
    model: ir.Model, batch: int, threads: int, runs: int, marks: Mapping[str, str] = ROLES, warm_up: int = 2
) -> list[Share]:
    """Time by role of a reduced model, the largest first. Raises: TokenrtError when the runtime does not take it."""
    with tempfile.TemporaryDirectory(prefix="tokenrt-roles-") as folder:
        opened = timing.session(labelled(model), threads=threads, profile=str(Path(folder) / "profile"))
        data = timing.feeds(opened, batch)
        for _ in range(warm_up + runs):
            opened.run(None, data)
        events = node_profile.read(Path(opened.end_profiling()))
    spent: dict[str, dict[str, float]] = {}
    nodes: dict[str, set[str]] = {}
    for event in _outermost(events):
        name = str(event["name"])
        role = next((told for mark, told in marks.items() if mark in name), MODEL)
        operator = event["args"]["op_name"]
        table = spent.setdefault(role, {})
        table[operator] = table.get(operator, 0.0) + event["dur"] / 1e3 / (warm_up + runs)
        nodes.setdefault(role, set()).add(name)
    found = [Share(role, sum(table.values()), len(nodes[role]), table) for role, table in spent.items()]
    return sorted(found, key=lambda share: -share.milliseconds)


def _outermost(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What the nodes took, those inside a loop left out: they run during the loop, whose time theirs is."""
    end = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        if (
            event.get("cat") == "Node"
            and str(event["name"]).endswith(node_profile.KERNEL)
            and event["ts"] >= end
        ):
            end = event["ts"] + event["dur"]
            yield event


def labelled(model: ir.Model) -> ir.Model:
    """A copy without functions whose nodes have the names of their outputs.

    Nodes that repeat one of the model's own are left out, as the runtime does: it would keep either's name.
    """
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    from tokenrt.passes.forms.lower import lower

    copy = lower(model, inline=True).model
    CommonSubexpressionEliminationPass()(copy)
    for node in copy.graph:
        node.name = str(node.outputs[0].name)
    return copy
