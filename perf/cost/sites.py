"""What each site of a plan adds on a target: launches in the form of functions and by plugin, and time as the model has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from tokenrt.errors import TargetError, TokenrtError
from tokenrt.passes.analysis.prepare import ShapeOption
from tokenrt.passes.forms.bodies import beyond_plugins, for_gpu, shapes_of
from tokenrt.passes.forms.legalize import Accepts
from tokenrt.passes.forms.pairs import join
from tokenrt.passes.graph.model import ModelLike
from tokenrt.passes.graph.shapes import Dims, infer
from tokenrt.passes.ops import DOMAIN
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.cost import fusion
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.launch import Work
from tokenrt.perf.cost.operators import OPERATORS, work
from tokenrt.perf.cost.report import PlanCost, SiteCost, Times
from tokenrt.perf.profile import groups
from tokenrt.targets.profiles.profile import Target

HALF, SINGLE = 2, 4
"""Bytes of an element: times are those of a model in float16, in which scores and the points of clusterings stay float32."""

IN_SINGLE = frozenset({"TokenSelect", "TokenGroupSelect", "TokenPeaks", "TokenMeans", "TokenMedoids"})


def cost_of(
    model: ModelLike, plan: Plan, target: Target, *, batch: int = 1, shape: ShapeOption = None
) -> PlanCost:
    """Count what the reductions of a plan add to a model on a target, for `batch` images.

    What cannot be counted is left out and said in `notes`: launches where the target is no GPU of TensorRT's, plugins where it
    takes none, time where its profile lacks a figure. Raises: TargetError for a batch below 1.
    """
    return _cost(lambda: Reducer.of(model, shape, plan.wanted or None), plan, target, batch)


def cost_in(reducer: Reducer, plan: Plan, target: Target, *, batch: int = 1) -> PlanCost:
    """The same for a model that is prepared already."""
    return _cost(lambda: reducer, plan, target, batch)


def _cost(made: Callable[[], Reducer], plan: Plan, target: Target, batch: int) -> PlanCost:
    if batch < 1:
        raise TargetError(f"--batch {batch}: expected 1 image or more")
    accepts, found, chip = target.accepts(), PlanCost(plan, target.name, batch), None
    if not accepts.gpu:
        return found.told(f"{target.name} runs no engine of TensorRT's: launches are counted for these")
    try:
        chip = Chip.of(target)
    except TargetError as error:
        found = found.told(str(error))
    if not plan.sites:
        return found
    try:
        reducer = made()
        prepared = reducer.prepared
        known = groups.groups_of(prepared)
        reduced = reducer.reduce(plan).model
        refused, plugins = _plugins(reduced, known, batch, accepts, chip) if accepts.plugins else ({}, {})
        functions = _functions(reduced, known, accepts.top_k, batch)
    except TokenrtError as error:
        return found.told(f"launches were not counted: {error}")
    if not accepts.plugins:
        found = found.told(f"{target.name} takes no plugins")
    for node, reason in refused.items():
        found = found.told(f"{node.op_type} {node.name!r} stays a function: {reason}")
    sites = tuple(_sites(plan, functions, plugins if accepts.plugins else None, chip))
    launches = fusion.whole(prepared.model.graph, prepared.shapes)
    return replace(found, sites=sites, launches=launches, times=_times(plan, sites, launches, chip, batch))


def _sites(
    plan: Plan,
    functions: Mapping[str, list[fusion.Level]],
    plugins: Mapping[str, Calls] | None,
    chip: Chip | None,
) -> Iterator[SiteCost]:
    for site, before in zip(plan.sites, plan.arriving(), strict=True):
        group = groups.reduction_of(site.transformer, site.block)
        launched = functions.get(group, [])
        calls = None if plugins is None else plugins.get(group)
        yield SiteCost(
            site, before, len(launched), None if calls is None else calls.launches,
            None if chip is None else sum(level.seconds(chip) for level in launched),
            None if chip is None or calls is None else calls.seconds(chip),
        )  # fmt: skip


@dataclass(frozen=True)
class Calls:
    """The plugins of a site, and launches of other operators around them."""

    works: tuple[Work, ...] = ()
    around: tuple[fusion.Level, ...] = ()

    @property
    def launches(self) -> int:
        return len(self.around) + sum(len(work.launches) for work in self.works)

    def seconds(self, chip: Chip) -> float:
        own = sum(work.seconds(chip) for work in self.works)
        return own + sum(level.seconds(chip) for level in self.around)


def _plugins(
    model: ir.Model, known: Mapping[str, str], batch: int, accepts: Accepts, chip: Chip | None
) -> tuple[dict[ir.Node, str], dict[str, Calls]]:
    """Nodes that no plugin takes, and the plugins by group, but for groups with such a node, as `lower` writes them.

    Raises: TokenrtError where shapes are not known.
    """
    model = model.clone()
    for _ in join(model, shapes_of(model), accepts.plugin_refuses):
        pass
    refused = beyond_plugins(model, accepts.plugin_refuses)
    dims, told = infer(model, strict=False).dims, fusion.computed(model.graph)
    found = {}
    for group, nodes in _grouped(model, known).items():
        ours = [node for node in nodes if node.domain == DOMAIN and node.op_type in OPERATORS]
        if any(node in refused for node in ours):
            continue
        works = tuple(_work(node, dims, batch, chip) for node in ours)
        found[group] = Calls(works, tuple(fusion.launched(nodes, told, dims, batch)))
    return refused, found


def _work(node: ir.Node, dims: Mapping[str, Dims], batch: int, chip: Chip | None) -> Work:
    shapes = [
        fusion.images(dims.get(str(value.name), ()), batch) for value in node.inputs if value is not None
    ]
    if not shapes[0]:
        raise TargetError(f"the shape of {node.inputs[0]} is not known")
    own = {key: attribute.value for key, attribute in node.attributes.items()}
    return work(node.op_type, shapes, own, SINGLE if node.op_type in IN_SINGLE else HALF, chip)


def _functions(
    model: ir.Model, known: Mapping[str, str], top_k: int | None, batch: int
) -> dict[str, list[fusion.Level]]:
    """Launches by group, as lowered for GPUs; `model` is changed."""
    for_gpu(model, top_k=top_k)
    groups.inlined(model, known)
    told, dims = fusion.computed(model.graph), infer(model, strict=False).dims
    return {
        group: fusion.launched(nodes, told, dims, batch) for group, nodes in _grouped(model, known).items()
    }


def _grouped(model: ir.Model, known: Mapping[str, str]) -> dict[str, list[ir.Node]]:
    """The nodes of the graph by group, in order."""
    own, found = groups.grouped(model, known), dict[str, list[ir.Node]]()
    for node in model.graph:
        if groups.of_the_reduction(own[node]):
            found.setdefault(own[node], []).append(node)
    return found


def _times(
    plan: Plan, sites: tuple[SiteCost, ...], launches: int, chip: Chip | None, batch: int
) -> Times | None:
    """The time of the model before and behind the reduction, in both forms."""
    if chip is None or not plan.macs_before:
        return None

    def spent(macs: int) -> float:
        return launches * chip.launch + 2.0 * macs * batch / chip.tensor

    functions = sum(site.functions_seconds or 0 for site in sites)
    plugins = [site.plugins_seconds for site in sites if site.plugins_seconds is not None]
    after, every = spent(plan.macs_after), len(plugins) == len(sites)
    return Times(spent(plan.macs_before), after + functions, after + sum(plugins) if every else None)
