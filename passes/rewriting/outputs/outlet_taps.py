"""What a method reads at an output: its rows, and the attention, keys and queries of the tokens they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from tokenrt.errors import MethodError, UnsupportedError
from tokenrt.passes.analysis.outlets.find import Source
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.methods.parts.steps import head_mean
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import FLOAT
from tokenrt.passes.rewriting.taps.block import GraphTaps


@dataclass(frozen=True)
class OutletTaps:
    """The `Taps` of the rows of an output.

    tokens [B,M,C]. source: of which tokens each row is made; None where that is not known, and then there is no attention to
    read. block: the one whose attention is read. given: inputs of the model by name, those a method takes. project: carries other
    rows to the output.
    """

    op: GraphOps
    shapes: Shapes
    tokens: ir.Value
    structure: Structure | None
    source: Source | None
    block: int = -1
    given: Mapping[str, ir.Value] = field(default_factory=dict)
    project: Callable[[Value], Value] | None = None
    size: None = None
    padded: bool = False
    state: Mapping[str, ir.Value] = field(default_factory=dict)

    def layer(self, role: str, block: int) -> OutletTaps:
        return replace(self, block=block)

    def stream(self) -> Value:
        inner = self._inner()
        assert inner.entry is not None
        return self._rows(inner.stream(), 1, int(self.shapes.of(inner.entry)[-1]))

    def normed(self) -> Value:
        return self.op("Cast", self.tokens, to=FLOAT)

    def metric(self) -> Value:
        core = self._inner().core
        return head_mean(self.op, self.keys(), core.key_heads, core.width)

    def queries(self) -> Value:
        return self._rows(self._inner().queries(), 2)

    def keys(self) -> Value:
        return self._rows(self._inner().keys(), 2)

    def values(self) -> Value:
        return self._rows(self._inner().values(), 2)

    def attention(self) -> Value:
        return self._rows(self._rows(self._inner().attention(), 3), 2)

    def class_attention(self) -> Value:
        return self._rows(self._inner().class_attention(), 1)

    def received_attention(self) -> Value:
        return self._rows(self._inner().received_attention(), 1)

    def last_attention(self) -> Value:
        return self._rows(self._inner().last_attention(), 1)

    def text(self) -> Value:
        return self._input("text")

    def text_keys(self) -> Value:
        return self.op("Unsqueeze", self.text(), [1])

    def text_mask(self) -> Value | None:
        return self.given.get("text_mask")

    def quotas(self) -> Value:
        return self._input("quotas")

    def importance(self) -> Value:
        return self._input("importance")

    def pixels(self) -> Value:
        if "pixels" not in self.given:
            raise UnsupportedError("the method reads the picture [B,3,h,w], and no input of the model is one")
        return self.given["pixels"]

    def projected(self, tokens: Value) -> Value:
        if self.project is None:
            raise UnsupportedError(
                "no product with weights lies between the tokens and the output: nothing to carry them through"
            )
        return self.project(tokens)

    def _input(self, name: str) -> Value:
        if name not in self.given:
            raise MethodError(
                f"the method reads the input {name!r} with these options, which the model gains where its shape is said: "
                f"--shape {name}=..."
            )
        return self.given[name]

    def _inner(self) -> GraphTaps:
        """The taps of the whole attention of the block."""
        if self.structure is None or self.source is None:
            raise UnsupportedError(
                "which tokens of which block the rows of the output are made of cannot be told, so there is no attention and no "
                "key to read for them; use a method that reads the rows themselves, e.g. divprune"
            )
        blocks = self.structure.blocks
        if not -len(blocks) <= self.block < len(blocks):
            raise MethodError(
                f"block {self.block} does not exist: the transformer in front of the output has {len(blocks)} blocks that can be "
                "read (an exporter leaves out the last ones where nothing reads them: see tokenrt export --keep-layer)"
            )
        block = blocks[self.block]
        return GraphTaps(
            self.op,
            block.core,
            self.shapes,
            self.structure.flow.marks,
            self.structure.tokens,
            self.structure.stream.batch,
            self.tokens,
            None,
            entry=block.entry,
        )

    def _rows(self, value: Value, axis: int, width: int = 0) -> Value:
        """Entries of all tokens along an axis as those of the rows, the mean over the tokens of each; width: of a stream's."""
        assert self.source is not None
        assert self.structure is not None
        op, table, tokens = self.op, self.source.tokens, self.structure.tokens
        if self.source.folded:
            value = self._folded(value, axis, width)
        elif table.shape[1] == 1 and (np.diff(table[:, 0]) == 1).all():
            first = int(table[0, 0])
            whole = first == 0 and len(table) == tokens
            return value if whole else op("Slice", value, [first], [first + len(table)], [axis])
        if table.shape[1] == 1:
            return op("Gather", value, table[:, 0], axis=axis)
        # [..,M,U,..]: a Gather with a table of indices has its axes in place of the one it takes from.
        return op("ReduceMean", op("Gather", value, table, axis=axis), axes=[axis + 1], keepdims=0)

    def _folded(self, value: Value, axis: int, width: int) -> Value:
        """[BP,N], a stream [BP,N,C] or [BP,H,N,D] as sequences of P pictures each: [B,PN], [B,PN,C] or [B,H,PN,D]."""
        assert self.source is not None
        assert self.structure is not None
        count = self.source.pictures * self.structure.tokens
        if axis == 1:
            return self.op("Reshape", value, [-1, count, width] if width else [-1, count])
        if axis == 2:
            turned = self.op("Transpose", value, perm=[1, 0, 2, 3])
            joined = self.op("Reshape", turned, [0, -1, count, self._inner().core.width])
            return self.op("Transpose", joined, perm=[1, 0, 2, 3])
        raise UnsupportedError(
            "the output is put together of several pictures, and attention runs inside each: there is no matrix of all tokens "
            "to read"
        )
