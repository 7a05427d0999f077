"""What is known of one transformer of a graph: its blocks, its token axis, and which tokens never leave.

A block's *attended* value is the residual stream right after the attention is added; its *output* is the
stream after the whole block. Both are cuts: whatever follows sees the tokens only through them, so tokens can
leave there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.analysis.attended import folds_tokens
from tokenrt.passes.analysis.attention import Core
from tokenrt.passes.analysis.branch import Branch
from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.grid import Grid
from tokenrt.passes.analysis.marks import Blocked, Marks
from tokenrt.passes.analysis.protected import Guard, positions
from tokenrt.passes.analysis.residual import Refusal
from tokenrt.passes.analysis.stream import Layout, stream_of
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.shapes import Shapes


@dataclass(frozen=True)
class Block:
    """One transformer block. `attended` is None where attention and MLP run side by side.

    branch: the attention apart from the stream, or why it cannot be told apart. apart: why tokens that leave here may not
    merge or change places, as masks here or behind keep them apart; nothing where they may.
    """

    index: int
    core: Core
    entry: ir.Value
    attended: ir.Value | None
    output: ir.Value
    branch: Branch | str
    apart: str = ""


@dataclass(frozen=True)
class Structure:
    """The blocks of one transformer and its token axis.

    tokens: N at the first block. guards: the tokens that never leave, and why. fits: whether it has the tokens
    that the user names. stream: how the first block's entry holds the tokens. origins: values that the analysis starts
    from, with their marks: the entry, and what it is a layout of. body: the nodes from the first block's entry to the
    last block's output; everything else behind them is tail. grid: the layout of the unprotected tokens, (h, w) or
    (frames, h, w), where one is found. rows: a flow of each axis that makes rows of tokens beside the pictures of the
    batch, as frames folded into it do.
    refusals: attentions its tokens reach that are no block of it, and blocks that take no reduction. unseen: protected
    tokens of which others do not learn, as those behind a prefix do of later ones: no choice may read them. prompt: the last
    token alone has seen all. cached: some outputs are keys or values of the blocks.
    """

    blocks: tuple[Block, ...]
    tokens: int
    guards: tuple[Guard, ...]
    class_token: bool
    stream: Layout
    origins: Mapping[ir.Value, Marks]
    body: frozenset[ir.Node]
    flow: Flow
    refusals: tuple[Refusal, ...]
    grid: Grid | None = None
    rows: tuple[Flow, ...] = ()
    fits: bool = True
    unseen: tuple[int, ...] = ()
    prompt: bool = False
    cached: bool = False

    @property
    def protected(self) -> tuple[int, ...]:
        """The positions that never leave, ascending."""
        return positions(self.guards)

    @property
    def protect(self) -> int:
        """How many never leave; behind the first reduction they stand in front."""
        return len(self.protected)

    def held(self, value: ir.Value, shapes: Shapes) -> Layout | None:
        """How a value holds the stream's tokens; None where it is no stream of them."""
        return stream_of(value, self.flow, shapes, self.stream)

    def reaches(self, core: Core, skip: ir.Value, shapes: Shapes) -> bool:
        """Whether its tokens come to an attention or the stream beside it, or would but for an operator without a rule."""
        if self.stream.across > 1 and folds_tokens(core, self.flow, shapes):
            return False  # It runs over the other of two axes, which is that of another transformer.
        ends = (core.query, core.key, core.value, skip)
        return any(self.flow.marks.get(value) for value in ends) or any(
            stop.kind != "grid" for stop in stops(core, self.flow)
        )


NOTHING = Structure((), 0, (), False, Layout((), (), "rows", 1, 0), {}, frozenset(), Flow(), ())


def stops(core: Core, flow: Flow) -> list[Blocked]:
    """The nodes in front of an attention that the tokens do not pass."""
    before = ancestors((core.query, core.key, core.value))
    return [b for b in flow.blocked if b.node is not None and not before.isdisjoint(b.node.outputs)]
