"""The work a plan leaves, over every transformer it reduces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.marks import Marks
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.planning.flops import Cost, cost
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.route import cut, in_order, returns, route
from tokenrt.passes.planning.several import Routes, check_apart
from tokenrt.passes.planning.steps import FROM_LAST


@dataclass(frozen=True)
class Work:
    """The routes of a plan's transformers, the work of any plan with the same sites, and that of no reduction.

    again: what is worked out a second time, of restored tokens.
    """

    routes: Routes
    cost: Cost
    full: int
    again: int

    @classmethod
    def of(cls, prepared: Prepared, plan: Plan) -> Work:
        """Raises: UnsupportedError where tokens cannot pass, or two transformers do not go together."""
        graph, shapes = prepared.model.graph, prepared.shapes
        routes = {}
        for number in plan.reduced():
            structure, own = prepared.transformers[number], plan.of(number)
            cuts = [made for site in own.sites if (made := cut(structure.blocks[site.block], site.where))]
            chosen, unit = [own.at(site) for site in own.sites], plan.transformers[number].unit
            back, drops = returns(structure, own.returns, own.sites), [method.drops for method in chosen]
            ordered = in_order(structure, own.sites, all(method.keeps_order for method in chosen))
            routes[number] = route(
                graph,
                shapes,
                structure,
                cuts,
                back,
                drops,
                plan.shortened(),
                unit,
                ordered,
                own.returns == FROM_LAST,
            )
        check_apart(routes)
        flows = [path.flow for path in routes.values()]
        work = cost(graph, shapes, together(flows, [len(path.sites) for path in routes.values()]))
        none = [plan.transformers[number].tokens for number, path in routes.items() for _ in (0, *path.sites)]
        ways = (way for path in routes.values() for way in path.again.values())
        again = cost((step.node for way in ways for step in way.steps), shapes, {}).macs(())
        return cls(routes, work, work.macs(none), again)

    def macs(self, plan: Plan) -> int:
        counts = [count for number in self.routes for count in plan.of(number).counts()]
        return self.cost.macs(counts) + self.again


def together(flows: Sequence[Flow], sites: Sequence[int]) -> dict[ir.Node, tuple[Marks, ...]]:
    """The marks that every node sees on its inputs, of all flows, for counts that stand one behind the other.

    sites: how many each flow has; its counts are one more, the transformer's own first.
    """
    found: dict[ir.Node, tuple[Marks, ...]] = {}
    first = 0
    for flow, length in zip(flows, sites, strict=True):
        for node, inputs in flow.inputs.items():
            own = tuple(tuple(replace(mark, stage=first + mark.stage) for mark in marks) for marks in inputs)
            before = found.get(node, ((),) * len(own))
            found[node] = tuple(a + b for a, b in zip(before, own, strict=True))
        first += length + 1
    return found
