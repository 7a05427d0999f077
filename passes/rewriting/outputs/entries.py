"""Choose among the entries of caches: keys and values come out as those that stay, and the model tells which these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from tokenrt.passes.analysis.outlets.entries import LayerCache
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.graph.interface import CHOSEN, PAST, PRESENT, SALIENT, SCORE, Port, caches, of_layer
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import BATCH, Dims
from tokenrt.passes.methods.contract import Site, Value
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.planning.outputs import cache_fit, handover
from tokenrt.passes.planning.outputs.cache_site import CacheSite
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.rewriting.inputs import free_batch, gain
from tokenrt.passes.rewriting.prove import prove
from tokenrt.passes.rewriting.taps.cache import GraphCacheTaps
from tokenrt.passes.rewriting.tidy import tidy


def rewrite(prepared: Prepared, plan: Plan) -> ir.Model:
    """The prepared model with its caches thinned as the plan says, changed in place and proven.

    Raises: PlanError, MethodError, UnsupportedError, ProofError; the model is then of no use.
    """
    model, shapes = prepared.model, prepared.shapes
    every, before = cache_fit.found(prepared).found, caches(model)
    chosen = cache_fit.checked(every, plan)
    op = GraphOps(model.graph, None, opset(model), "tokenrt_cache")
    told = {layer.number: _whole(layer) for layer in every}
    told |= {layer["layer"]: layer for layer in before.get("layers", ())}
    rewriter = EntriesRewriter(prepared, op, told)
    for site, layer, method in chosen:
        rewriter.run(site, layer, method)
    op.add_functions(model)
    prompt = all(layer.asking == layer.tokens for layer in every)
    tokens = before.get("next_position", max(layer.tokens for layer in every)) if prompt else None
    handover.told(model, [told[number] for number in sorted(told)], tokens, before.get("windows", ()))
    interface = (
        prepared.interface.changed(rewriter.dims)
        .with_inputs(Port(name, value.dtype) for name, value in rewriter.gained.items())
        .with_outputs(rewriter.added)
    )
    tidy(model)
    axes = [(name, 2, dims[2]) for name, dims in rewriter.dims.items()]
    prove(model, plan, replace(shapes, dims={**shapes.dims, **rewriter.dims}), axes, interface)
    return model


def _whole(layer: LayerCache) -> dict[str, Any]:
    """What a host is told of a cache that keeps all its entries."""
    names = {"key": str(layer.key.name), "value": str(layer.value.name)}
    return {"layer": layer.number, **names, "tokens": layer.tokens}


@dataclass
class EntriesRewriter:
    """One rewrite of all caches of a model.

    told: what a host is told of each layer, by its number. dims: the new shapes of the outputs. gained: inputs that methods asked
    for, by name. added: outputs that the model gains, with their types.
    """

    prepared: Prepared
    op: GraphOps
    told: dict[int, dict[str, Any]]
    dims: dict[str, Dims] = field(default_factory=dict)
    gained: dict[str, ir.Value] = field(default_factory=dict)
    added: list[tuple[str, ir.DataType]] = field(default_factory=list)

    def run(self, site: CacheSite, layer: LayerCache, method: CacheMethod) -> None:
        """Let a layer's cache hold the entries that a method chooses, or tell which it chose."""
        op, remembers = self.op, "state" in method.reads
        here = self._site(site, layer)
        lists = method.lists(here)

        def gains(name: str, dims: tuple[int, ...]) -> ir.Value:
            return self._gain(of_layer(name, layer.number), [batch, *dims], method.name)

        batch = self._batch(layer)
        taps = GraphCacheTaps(op, layer, self.prepared.shapes, here, lists if remembers else 0, gains)
        chosen = method.choose(op, taps, here)
        index, told = taps.own(chosen.index, lists), self.told[layer.number]
        if method.thins:
            for value in (layer.key, layer.value):
                self._thin(value, cache.entries(op, value, index), site.tokens)
            # The prompt may have lost tokens in front of the layer.
            before = told.get("index")
            name = of_layer(CHOSEN, layer.number)
            whole = index if before is None else self._of_prompt(index, before, lists, layer.tokens)
            told |= {"tokens": site.tokens, "index": name, "heads": method.heads}
        else:
            name, whole = of_layer(SALIENT, layer.number), index
            told |= {"salient": name}
        if method.heads == cache.OWN:
            self._tell(name, whole, batch, lists, site.tokens)
        else:
            self._tell(name, op("Squeeze", whole, [1]), batch, site.tokens)
        for what, value in chosen.state.items():
            assert what == cache.SCORE
            told |= {PRESENT + SCORE: of_layer(PRESENT + SCORE, layer.number)}
            self._tell(told[PRESENT + SCORE], value, batch, lists, site.tokens)
        if (past := of_layer(PAST + SCORE, layer.number)) in self.gained:
            told |= {PAST + SCORE: past}

    def _site(self, site: CacheSite, layer: LayerCache) -> Site:
        core = layer.core
        return Site(
            tokens=layer.tokens,
            keep=site.tokens,
            protect=0,
            heads=layer.heads,
            width=core.width,
            block=layer.number,
            blocks=len(self.told),
            class_token=False,
            asking=layer.asking,
            shared=core.heads // layer.heads,
        )

    def _batch(self, layer: LayerCache) -> int | str:
        """How many prompts there are, or the name for any number of them."""
        size = self.prepared.shapes.of(layer.key)[0]
        return free_batch(self.prepared.model.graph) if size % BATCH == 0 else size

    def _gain(self, name: str, dims: Sequence[int | str], method: str) -> ir.Value:
        """An input of this shape."""
        if name not in self.gained:
            self.gained[name] = gain(self.prepared.model.graph, name, dims, method)
        return self.gained[name]

    def _thin(self, value: ir.Value, kept: ir.Value, count: int) -> None:
        """Let an output be the entries of it that stay."""
        graph, dims, name = self.prepared.model.graph, self.prepared.shapes.of(value), str(value.name)
        declared = [*(value.shape or ())]
        declared[2:3] = [count] if declared else []
        value.name, kept.name = f"{name}_every", name
        kept.type, kept.shape = value.type, ir.Shape(declared) if declared else None
        graph.outputs[[*graph.outputs].index(value)] = kept
        self.dims[name] = (*dims[:2], count, dims[3])

    def _of_prompt(self, index: Value, before: str, lists: int, tokens: int) -> Value:
        """Entries [B,L,K] of the tokens that reached a layer, as those of the prompt."""
        op = self.op
        (reached,) = (value for value in self.prepared.model.graph.outputs if value.name == before)
        every = op("Expand", op("Unsqueeze", reached, [1]), steps.batch_shape(op, reached, lists, tokens))
        return op("GatherElements", every, index, axis=2)

    def _tell(self, name: str, value: Value, *dims: int | str) -> None:
        """Add an output of this shape."""
        told = self.op("Identity", value)
        told.name, told.shape = name, ir.Shape(dims)
        self.prepared.model.graph.outputs.append(told)
        self.added.append((name, told.dtype))
