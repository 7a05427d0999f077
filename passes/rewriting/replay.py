"""Do to other tokens what the model does: those that left, along the trunk, and those that came back, in the tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.marks import Edit, ReduceAuxiliary, SetInput, WeighPool
from tokenrt.passes.analysis.trunk import Step, Way
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.auxiliary import Auxiliaries
from tokenrt.passes.rewriting.stages import Stage

Inputs = tuple[ir.Value | None, ...]


@dataclass(frozen=True)
class Replay:
    """Repeats nodes of the model for other tokens.

    inputs: what every node read before the model was changed. edits: what was changed at each. sites: how many there are.
    """

    op: GraphOps
    inputs: Mapping[ir.Node, Inputs]
    edits: Mapping[ir.Node, Sequence[Edit]]
    auxiliaries: Auxiliaries
    sites: int

    def run(self, way: Way, found: Mapping[ir.Value, ir.Value], stage: Stage) -> ir.Value:
        """The tokens at the end of a way; `found` gives those at its sources, as many as there are at `stage`."""
        made = dict(found)
        for step in way.steps:
            made.update(zip(step.node.outputs, self._step(step, made, stage), strict=False))
        return made[way.value]

    def _step(self, step: Step, made: Mapping[ir.Value, ir.Value], stage: Stage) -> Sequence[ir.Value]:
        inputs = self.inputs[step.node]
        given = {index: made[data] for index in step.tokens if (data := inputs[index]) is not None}
        if step.skips:
            (trunk,) = given.values()
            return [self.op("Neg", trunk) if step.node.op_type == "Sub" and step.tokens == (1,) else trunk]
        return self.op.repeat(
            step.node,
            [
                given[index] if index in given else self._beside(step.node, index, stage)
                for index in range(len(inputs))
            ],
        )

    def _beside(self, node: ir.Node, index: int, stage: Stage) -> ir.Value | None:
        """An input that is no stream of tokens, for as many tokens as there are at `stage`."""
        value = self.inputs[node][index]
        if value is None:
            return None
        for edit in self.edits.get(node, ()) if stage.parent is not None else ():
            if isinstance(edit, SetInput) and edit.index == index:
                return self.op.constant(np.asarray(edit.make([stage.count] * (self.sites + 1)), np.int64))
            if isinstance(edit, ReduceAuxiliary) and edit.index == index:
                return self._reduced(edit, value, stage)
        producer = value.producer()
        if producer is not None and any(isinstance(edit, WeighPool) for edit in self.edits.get(producer, ())):
            return node.inputs[index]
        return value

    def _reduced(self, edit: ReduceAuxiliary, value: ir.Value, stage: Stage) -> ir.Value:
        """What holds one entry per token, for those of `stage`; the node reads what it read before for that long."""
        now = edit.node.inputs[edit.index]
        edit.node.replace_input_with(edit.index, value)
        reduced = self.auxiliaries.reduce(edit, stage)
        edit.node.replace_input_with(edit.index, now)
        return reduced
