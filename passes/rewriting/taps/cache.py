"""What methods read of one layer's cache in a graph: keys and values, the queries of the last tokens, under the model's masks.

Padding that a mask of the input hides is moved in front of all other entries, as methods have it: they read everything in that
order, and what they choose is put back into the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes.analysis.outlets.entries import LayerCache
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.interface import PAST, SCORE
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes, describe
from tokenrt.passes.methods.contract import Site, Value
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import Rows
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.auxiliary import Auxiliaries
from tokenrt.passes.rewriting.logits import FLOAT, LOWEST, SHOWN, additive
from tokenrt.passes.rewriting.stages import Stage
from tokenrt.passes.rewriting.taps.block import GraphTaps, check_readable
from tokenrt.passes.rewriting.taps.rotation import unrotated, weighed

INT64 = int(ir.DataType.INT64)
Gains = Callable[[str, tuple[int, ...]], ir.Value]


@dataclass(frozen=True)
class GraphCacheTaps:
    """The `CacheTaps` of a layer.

    lists: for how many lists of entries the method is given its scores of before, none where it asks for none. gains: makes an
    input of the model, by its name and its shape behind the batch. rotated: queries and keys are as attention reads them.
    """

    op: GraphOps
    layer: LayerCache
    shapes: Shapes
    site: Site
    lists: int
    gains: Gains
    rotated: bool = True

    @property
    def state(self) -> Mapping[str, ir.Value]:
        past = self.site.tokens - self.site.asking
        if not self.lists or not past:
            return {}
        before = self.gains(PAST + SCORE, (self.lists, past))
        if self.order is not None:
            own = steps.cut(self.op, self.order, 0, past)
            before = self.op("GatherElements", before, self._spread(own, self.lists, past), axis=2)
        return {cache.SCORE: before}

    def keys(self) -> ir.Value:
        value = self.layer.key if self.rotated else unrotated(self.layer.key, self.shapes)
        return self._rolled(self._float(value), 2, self.shapes.of(value))

    def values(self) -> ir.Value:
        return self._rolled(self._float(self.layer.value), 2, self.shapes.of(self.layer.value))

    def queries(self) -> ir.Value:
        return self._asking(None)

    def logits(self, rows: Rows = None) -> ir.Value:
        op, site, core = self.op, self.site, self.layer.core
        check_readable(core)
        count = site.asking if rows is None else len(rows)
        # Heads of queries that share keys stand together: as many rows more of one head.
        asking = op("Reshape", self._asking(rows), [self._batch, site.heads, site.shared * count, site.width])
        product = op("MatMul", asking, op("Transpose", self.keys(), perm=[0, 1, 3, 2]))
        split = op("Reshape", product, [self._batch, core.heads, count, site.tokens])
        logits: ir.Value = op("Mul", split, core.scale * self.layer.factor)
        for part in self._biases(rows):
            logits = op("Add", logits, part)
        return logits

    def attention(self, rows: Rows = None) -> ir.Value:
        found: ir.Value = self.op("Softmax", self.logits(rows), axis=-1)
        return found

    def noise(self) -> ir.Value:
        site, heads = self.site, self.layer.core.heads
        given, dims = (
            self.gains("noise", (heads, site.asking, site.tokens)),
            (heads, site.asking, site.tokens),
        )
        by_row = self._rolled(given, 2, (self._pictures, *dims)) if self._prompt else given
        return self._rolled(by_row, 3, (self._pictures, *dims))

    def temperature(self) -> ir.Value:
        return self.gains("temperature", (1,))

    def hidden(self) -> ir.Value:
        self._check_prompt("what the layer reads of every token")
        value = weighed(self.layer.key, self.shapes)[0]
        dims = self.shapes.of(value)
        if len(dims) != 3 or dims[1] != self.site.tokens:
            raise UnsupportedError(
                f"tensor {value.name!r} {describe(dims)}, which the method reads, is no plain stream of tokens"
            )
        return self._rolled(self._float(value), 1, dims)

    def real(self) -> ir.Value | None:
        if self._shown is None or self.order is None:
            return None
        number = self.op("ReduceSum", self._shown, [1], keepdims=1)
        there: ir.Value = self.op(
            "Not",
            self.op("Less", np.arange(self.site.tokens)[None], self.op("Sub", self.site.tokens, number)),
        )
        return there

    def unrotated(self) -> GraphCacheTaps:
        self._check_prompt("queries and keys of every token before their rotation")
        return replace(self, rotated=False)

    def predicted(self, width: int) -> PredictedTaps:
        if not width:
            raise PlanError(
                "the model gains what a predictor says as inputs, predicted_queries and predicted_keys of each layer: say their "
                "width, as in --set width=16"
            )
        site = replace(self.site, width=width)
        return PredictedTaps(self.op, self.layer, self.shapes, site, self.lists, self.gains)

    @cached_property
    def order(self) -> ir.Value | None:
        """[B,N] int64: the model's own place of each entry, padding first; None where no input hides any."""
        shown, op, site = self._shown, self.op, self.site
        if shown is None:
            return None
        if 1 < site.asking < site.tokens:
            raise UnsupportedError(
                f"{site.asking} tokens ask behind a past of {site.tokens - site.asking}, under a mask that is an input: which of "
                "them are padding cannot be told from it; use a prompt without a past, or one token at a time"
            )
        hidden = op("Sub", 1, shown)
        behind = op("Add", op("CumSum", shown, 1, exclusive=1), op("ReduceSum", hidden, [1], keepdims=1))
        goes = op("Where", op("Greater", shown, 0), behind, op("CumSum", hidden, 1, exclusive=1))
        own = op("Expand", np.arange(site.tokens)[None], op("Shape", goes))
        placed: ir.Value = op("ScatterElements", own, goes, own, axis=1)
        return placed

    @cached_property
    def _shown(self) -> ir.Value | None:
        """[B,N] int64, in the model's own order: 1 for what the last token sees; None where no input hides anything."""
        op, shown = self.op, None
        for node, index in self.layer.core.masks:
            value = node.inputs[index]
            if value is None or not depends_on_input(value) or self.shapes.of(value)[-1] != self.site.tokens:
                continue
            wide, dims = self._four(value)
            row = op("Slice", wide, [dims[2] - 1], [dims[2]], [2]) if dims[2] > 1 else wide
            mask = additive(op, node, index, row)
            if mask is None:
                continue
            seen = op("ReduceMax", op("Cast", op("Greater", mask, SHOWN), to=FLOAT), axes=[1, 2], keepdims=0)
            seen = op("Cast", seen, to=INT64)
            shown = seen if shown is None else op("Mul", shown, seen)
        if shown is None:
            return None
        every: ir.Value = op("Expand", shown, steps.batch_shape(op, self.layer.key, self.site.tokens))
        return every

    def _biases(self, rows: Rows) -> list[ir.Value]:
        """What masks and biases add to the logits of these rows; each broadcasts to [B,A,R,N]."""
        op, found, core = self.op, list[ir.Value](), self.layer.core
        for node, index in core.masks:
            value = node.inputs[index]
            if value is None:
                continue
            part, dims = self._four(value)
            if dims[2] > 1:
                part = self._of_rows(part, rows, dims)
                first = dims[0] if self.order is None or not self._prompt else self._pictures
                dims = (first, *dims[1:])
            if dims[3] > 1:
                part = self._rolled(part, 3, dims)
            mask = additive(op, node, index, part)
            if mask is not None:
                found.append(mask)
        if core.causal:
            self._check_prompt("attention that is causal by an attribute")
            later = np.triu(np.full((self.site.asking, self.site.tokens), LOWEST, np.float32), 1)
            found.append(op.constant((later if rows is None else later[[*rows]])[None, None]))
        return found

    def _asking(self, rows: Rows) -> ir.Value:
        """[B,A,R,D] float32 of these queries."""
        core, dims = (
            self.layer.core,
            (self._pictures, self.layer.core.heads, self.site.asking, self.site.width),
        )
        if self.rotated:
            value = GraphTaps(
                self.op, core, self.shapes, {}, self.site.asking, self._batch, core.query, None
            ).queries()
        else:
            value = self._float(unrotated(core.query, self.shapes))
        return self._of_rows(value, rows, dims)

    def _of_rows(self, value: ir.Value, rows: Rows, dims: Dims) -> ir.Value:
        """These of the Q rows on axis 2 of four, counted with padding in front."""
        if self.order is not None and self._prompt:
            return self._rolled(value, 2, dims, rows)
        if rows is None:
            return value
        first, end = min(rows), max(rows) + 1
        together = end - first == len(rows)
        taken: ir.Value = (
            steps.cut(self.op, value, first, end, 2)
            if together
            else self.op("Gather", value, np.array([*rows]), axis=2)
        )
        return taken

    def _rolled(self, value: ir.Value, axis: int, dims: Dims, rows: Rows = None) -> ir.Value:
        """Entries on an axis with padding in front, or some of them then."""
        order = self.order
        if order is None:
            return value
        count = self.site.tokens
        if rows is not None:
            order, count = self.op("Gather", order, np.array([*rows]), axis=1), len(rows)
        auxiliaries = Auxiliaries(self.op, self.shapes, None, self._pictures)
        pictures = None if self._pictures == 1 else 0
        return auxiliaries.take(value, axis, len(dims), dims, 0, Stage(count, position=order), pictures)

    def _four(self, value: ir.Value) -> tuple[ir.Value, Dims]:
        """A mask with four axes."""
        dims = self.shapes.of(value)
        missing = 4 - len(dims)
        wide = value if not missing else self.op("Unsqueeze", value, list(range(missing)))
        return wide, ((1,) * missing + dims)

    def _spread(self, index: Value, lists: int, count: int) -> ir.Value:
        """[B,L,n] of [B,n]."""
        wide = self.op("Unsqueeze", index, [1])
        every: ir.Value = self.op("Expand", wide, steps.batch_shape(self.op, index, lists, count))
        return every

    def own(self, index: Value, lists: int) -> Value:
        """Entries [B,L,K], chosen with padding in front, in the model's own order."""
        if self.order is None:
            return index
        return self.op("GatherElements", self._spread(self.order, lists, self.site.tokens), index, axis=2)

    def _check_prompt(self, what: str) -> None:
        if not self._prompt:
            raise UnsupportedError(
                f"{what} is there at the end of a prompt alone, and here {self.site.asking} of {self.site.tokens} tokens ask: "
                "use a method that goes on from call to call, e.g. h2o"
            )

    @property
    def _prompt(self) -> bool:
        return self.site.asking == self.site.tokens

    @property
    def _pictures(self) -> int:
        return self.shapes.of(self.layer.key)[0]

    @property
    def _batch(self) -> int:
        """B, -1 where it is free."""
        return -1 if self._pictures % BATCH == 0 else self._pictures

    def _float(self, value: ir.Value) -> ir.Value:
        cast: ir.Value = self.op("Cast", value, to=FLOAT)
        return cast


@dataclass(frozen=True)
class PredictedTaps(GraphCacheTaps):
    """The same with queries of the last token and keys from a predictor beside the model."""

    def keys(self) -> ir.Value:
        dims = (self.site.heads, self.site.tokens, self.site.width)
        return self._rolled(self.gains("predicted_keys", dims), 2, (self._pictures, *dims))

    def logits(self, rows: Rows = None) -> ir.Value:
        """[B,A,1,N] of the last token, which sees all."""
        op, site, heads = self.op, self.site, self.layer.core.heads
        asking = self.gains("predicted_queries", (heads, 1, site.width))
        asking = op("Reshape", asking, [self._batch, site.heads, site.shared, site.width])
        product = op("MatMul", asking, op("Transpose", self.keys(), perm=[0, 1, 3, 2]))
        split: ir.Value = op("Reshape", product, [self._batch, heads, 1, site.tokens])
        return split
