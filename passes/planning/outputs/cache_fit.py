"""Plan a choice among the entries of caches: which layers, how many stay of each, and whether an edited plan fits the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.outlets.entries import LayerCache, Layers, layers
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.methods.parts.cache import CacheMethod
from tokenrt.passes.planning import fit
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.flops import cost
from tokenrt.passes.planning.outputs import handover
from tokenrt.passes.planning.outputs.cache_site import CACHE, CacheSite
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.request import Request


def found(prepared: Prepared) -> Layers:
    """The layers of a model that have a cache. Raises: NothingToDoError where none has."""
    model = prepared.model
    every = layers(model.graph, prepared.shapes, prepared.transformers, handover.layers_of(model))
    if not every.found:
        told = "\n".join(f"- {why}" for why in every.missed) or "- no attention found"
        raise NothingToDoError(f"--site cache: no layer has a cache from which entries could leave\n{told}")
    return every


def method(name: str, options: Mapping[str, Any]) -> CacheMethod:
    """The method of a cache. Raises: PlanError for another, MethodError."""
    made = methods.for_graph(name, options)
    if not isinstance(made, CacheMethod):
        raise PlanError(
            f"--site cache: {name} reduces tokens, and chooses no entries of a cache; use e.g. snapkv"
        )
    return made


def meant(site: str | None, name: str) -> bool:
    """Whether entries of caches are to leave: where `--site cache` says so, or nothing, and the method is one for them."""
    return site == CACHE or (site is None and methods.get(name).home == CACHE)


def make(prepared: Prepared, name: str, budget: Budget, asked: Request) -> Plan:
    """Turn a budget into a plan. Raises: PlanError, MethodError, NothingToDoError."""
    chosen, every = method(name, asked.options or {}), found(prepared)
    own = _layers(every.found, budget)
    sites, notes = list[CacheSite](), [*every.missed]
    for place, layer in enumerate(own):
        wanted = left(budget, chosen, layer, place, len(own))
        if wanted < layer.tokens:
            _check(chosen, layer, wanted)
            sites.append(CacheSite(layer.number, layer.tokens, wanted, name, chosen.options()))
    work = cost(prepared.model.graph, prepared.shapes, {}).macs([])
    made = replace(
        fit.bare(prepared, chosen, budget, [f"keeps its cache: {why}" for why in notes]),
        macs_before=work,
        macs_after=work,
        entries=tuple(sites),
    )
    if not sites and not asked.allow_noop:
        raise NothingToDoError(
            f"the budget removes none of the {own[0].tokens} entries of a cache; ask for more, or pass --allow-noop to write the "
            "model unchanged"
        )
    return made


def _layers(every: Sequence[LayerCache], budget: Budget) -> list[LayerCache]:
    """The layers that a budget names, all where it names none. Raises: PlanError."""
    there = {layer.number: layer for layer in every}
    if len(there) < len(every):
        raise PlanError(
            "--site cache: several transformers of the model have caches, and layers are told by their numbers"
        )
    if budget.layers is None:
        return [*every]
    for number in budget.layers:
        if number not in there:
            raise PlanError(
                f"--layers: layer {number} has no cache from which entries could leave; those that have: "
                f"{', '.join(map(str, there))}"
            )
    if len(set(budget.layers)) != len(budget.layers):
        raise PlanError(f"--layers {','.join(map(str, budget.layers))}: a layer is named twice")
    return [there[number] for number in sorted(budget.layers)]


def left(budget: Budget, chosen: CacheMethod, layer: LayerCache, place: int, layers: int) -> int:
    """How many entries of a layer a budget leaves. Raises: PlanError."""
    tokens = layer.tokens
    if budget.kind == "remove":
        wanted = tokens - int(budget.amount)
    elif budget.kind == "keep":
        wanted = math.ceil(budget.amount * tokens)
    elif budget.kind == "tokens":
        if len(budget.counts) not in (1, layers):
            raise PlanError(
                f"--tokens gives {len(budget.counts)} counts for the caches of {layers} layers: give one for all, or one for each"
            )
        wanted = budget.counts[place if len(budget.counts) > 1 else 0]
    else:
        raise PlanError(
            f"--{budget.kind} divides work over blocks, and a cache that loses entries does not change it: give --tokens K, "
            "--keep RATIO or --remove R"
        )
    if budget.multiple_of > 1:
        nearest = chosen.nearest(wanted, tokens, 0, budget.multiple_of)
        if nearest is None:
            raise PlanError(
                f"layer {layer.number}: no multiple of {budget.multiple_of} of {tokens} entries can stay"
            )
        wanted = nearest
    return wanted


def _check(chosen: CacheMethod, layer: LayerCache, wanted: int) -> None:
    fewest = chosen.fewest(layer.tokens, 0)
    if not fewest <= wanted <= layer.tokens:
        raise PlanError(
            f"layer {layer.number}: {wanted} of {layer.tokens} entries cannot stay; {chosen.name} keeps {fewest} to "
            f"{layer.tokens - 1}"
        )


def checked(every: Sequence[LayerCache], plan: Plan) -> list[tuple[CacheSite, LayerCache, CacheMethod]]:
    """The sites of a plan, perhaps edited by hand, with the layers they are of. Raises: PlanError, MethodError."""
    there = {layer.number: layer for layer in every}
    made, seen = [], set[int]()
    for site in plan.entries:
        layer = there.get(site.layer)
        if layer is None or site.layer in seen:
            raise PlanError(
                f"the plan chooses entries of layer {site.layer}, which "
                + (
                    "it does twice"
                    if layer is not None
                    else f"has no cache; layers with one: {', '.join(map(str, there))}"
                )
            )
        seen.add(site.layer)
        if layer.tokens != site.arriving:
            raise PlanError(
                f"the plan is for {site.arriving} entries of the cache of layer {site.layer}, the model has {layer.tokens}; "
                "make a new plan for it"
            )
        chosen = method(site.method, site.options)
        _check(chosen, layer, site.tokens)
        if site.tokens < layer.tokens:
            made.append((replace(site, options=chosen.options()), layer, chosen))
    return made
