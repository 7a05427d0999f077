"""The cache of a language model layer by layer: what its attention reads, and how the outputs hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.attention import Core, cores, scalar
from tokenrt.passes.analysis.marks import Array
from tokenrt.passes.analysis.outlets.caches import LAYOUT, Part
from tokenrt.passes.analysis.outlets.origin import Groups, step
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.shapes import Shapes, describe, one_picture


@dataclass(frozen=True)
class LayerCache:
    """Keys and values [B,H,N,D] of one attention as outputs of the model; the last Q of the N tokens have queries.

    number: the layer's. heads: H. factor: what the keys are multiplied by on their way to the attention.
    """

    number: int
    core: Core
    key: ir.Value
    value: ir.Value
    heads: int
    factor: float

    @property
    def tokens(self) -> int:
        """N."""
        return self.core.keys

    @property
    def asking(self) -> int:
        """Q: N at a prompt's end, fewer while decoding."""
        return self.core.queries

    def as_dict(self) -> dict[str, Any]:
        return {
            "layer": self.number,
            "entries": self.tokens,
            "new": self.asking,
            "heads": self.heads,
            "key": str(self.key.name),
            "value": str(self.value.name),
        }


@dataclass(frozen=True)
class Layers:
    """The layers with a cache, and of other attentions why no entry can leave theirs."""

    found: tuple[LayerCache, ...]
    missed: tuple[str, ...]

    def told(self) -> list[str]:
        """A line for all layers alike."""
        alike: dict[tuple[int, int, int], list[str]] = {}
        for layer in self.found:
            alike.setdefault((layer.tokens, layer.asking, layer.heads), []).append(str(layer.number))
        lines = []
        for (tokens, asking, heads), numbers in alike.items():
            new = f", {asking} of them new," if asking < tokens else ""
            methods = "h2o, keyformer and dycoke_cache" if asking < tokens else "e.g. snapkv or h2o"
            several = "layers" if len(numbers) > 1 else "layer"
            lines.append(
                f"cache of {several} {', '.join(numbers)}: {tokens} entries{new} of {heads} heads; --site cache keeps some of "
                f"them ({methods})"
            )
        return lines


NONE = Layers((), ())


def layers(
    graph: ir.Graph, shapes: Shapes, transformers: Sequence[Structure], earlier: Mapping[str, int]
) -> Layers:
    """Find the layers with a cache. earlier: the layers of outputs with keys, by name, in a model that was reduced before.

    Layers are counted from 0 in their transformer; where tokens attend to a past, among the attentions that do.
    """
    blocks = {block.core.node: block.index for each in transformers for block in each.blocks}
    outputs, inputs = frozenset(graph.outputs), frozenset(graph.inputs)
    found, missed = list[LayerCache](), list[str]()
    past = 0
    for core in cores(graph, shapes):
        made = _cache(core, outputs, shapes, inputs)
        if core.queries == core.keys:
            key = None if isinstance(made, str) else str(made[0].name)
            number = blocks.get(core.node) if key is None else earlier.get(key, blocks.get(core.node))
        else:
            number, past = past, past + 1
        where = f"attention at {core.node.op_type} node {core.node.name!r}"
        if isinstance(made, str):
            missed.append(f"{where}: {made}")
        elif number is None:
            missed.append(f"{where}: it is not proven that tokens attend to one another there")
        else:
            found.append(LayerCache(number, core, made[0], made[1], shapes.of(made[0])[1], made[2]))
    return Layers(tuple(found), tuple(missed))


def _cache(
    core: Core, outputs: frozenset[ir.Value], shapes: Shapes, inputs: frozenset[ir.Value]
) -> tuple[ir.Value, ir.Value, float] | str:
    """The outputs with keys and values, and the factor of the keys; or why there are none."""
    reads: dict[Part, ir.Value] = {"key": core.key, "value": core.value}
    if len(shapes.of(core.query)) != 4 and not core.fused:
        return "its heads are folded into the batch"
    made, factor = list[ir.Value](), 1.0
    for part, value in reads.items():
        way = list[ir.Node]()
        step_value: ir.Value | None = value
        while step_value is not None and step_value not in outputs:
            node = step_value.producer()
            if node is None or node.op_type not in LAYOUT:
                return f"no output holds its {part}s [B,heads,tokens,head width]"
            way.append(node)
            step_value = node.inputs[0]
        if step_value is None:
            return f"no output holds its {part}s [B,heads,tokens,head width]"
        dims = shapes.of(step_value)
        if len(dims) != 4 or dims[2] != core.keys or core.heads % dims[1]:
            return f"output {step_value.name!r} {describe(dims)} does not hold one of its {core.keys} {part}s for each token"
        if not _laid_out(core, part, step_value, way, shapes):
            return f"output {step_value.name!r} {describe(dims)} holds its {part}s in a layout that is not followed"
        if core.queries != core.keys and not _grows(step_value, core, shapes, inputs):
            return (
                f"{core.queries} tokens ask {core.keys}, and output {step_value.name!r} is not an input with a past of fixed "
                "length (--shape) and their own behind it"
            )
        for node in way if part == "key" else ():
            number = scalar(node, 1) if node.op_type == "Mul" else 1.0
            if number is None:
                return f"{node.op_type} node {node.name!r} changes the keys behind the cache"
            factor *= number
        made.append(step_value)
    if shapes.of(made[0])[:2] != shapes.of(made[1])[:2]:
        return "keys and values have different heads"
    return made[0], made[1], factor


def _grows(value: ir.Value, core: Core, shapes: Shapes, inputs: frozenset[ir.Value]) -> bool:
    """Whether a cache is a past, an input of the model, with the entries of the tokens that ask behind it."""
    node = value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return False
    past, fresh = node.inputs
    axis = int(node.attributes["axis"].value)
    behind = fresh is not None and shapes.of(fresh)[2] == core.queries
    return axis in (2, -2) and past in inputs and behind


def _laid_out(core: Core, part: Part, output: ir.Value, way: Sequence[ir.Node], shapes: Shapes) -> bool:
    """Whether attention reads the output's entries head by head, each head repeated for those that share it; by numbers."""
    dims = one_picture(shapes.of(output))
    numbers: Array = np.arange(np.prod(dims), dtype=np.int32).reshape(dims)
    found, groups, end = {output: numbers}, Groups(int(numbers.size)), output
    for node in reversed(way):
        made = step(node, found, shapes, groups)
        if made is None:
            return False
        end, found = node.outputs[0], {node.outputs[0]: made[0]}
    wanted = np.repeat(numbers, core.key_heads // dims[1], axis=1)
    if core.fused and found[end].ndim == 3:
        wanted = wanted.transpose(0, 2, 1, 3).reshape(dims[0], dims[2], -1)
    elif part == "key" and core.key_transposed:
        wanted = wanted.swapaxes(2, 3)
    return bool(np.array_equal(found[end], wanted))
