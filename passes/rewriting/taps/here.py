"""The taps of a site: those of its block, and in a language model's prompt also of its words and of the blocks in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes.analysis.structure import Block
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.methods.contract import Taps
from tokenrt.passes.planning.plan import BEFORE, PlannedSite
from tokenrt.passes.rewriting.inputs import free_batch, gain
from tokenrt.passes.rewriting.stages import Stage, since
from tokenrt.passes.rewriting.streams import to_rows
from tokenrt.passes.rewriting.taps.block import GraphTaps, InletTaps
from tokenrt.passes.rewriting.taps.common import Common, repeated
from tokenrt.passes.rewriting.taps.prompt import PromptTaps
from tokenrt.passes.rewriting.taps.taken import Taken

if TYPE_CHECKING:
    from tokenrt.passes.rewriting.rewrite import Rewriter


def taps(
    rewriter: Rewriter,
    planned: PlannedSite,
    tokens: ir.Value,
    stage: Stage,
    state: Mapping[str, ir.Value],
) -> Taps:
    """What the method may read at a site of the tokens [B,N,C] of a stage."""
    across = rewriter.structure.stream.across
    block = rewriter.structure.blocks[planned.block]
    gains = partial(gained, rewriter, planned, stage)
    if rewriter.path.ordered:
        mlp = block if planned.where == "after-block" else None
        prompt: dict[str, Any] = {"mlp": mlp, "before": partial(_before, rewriter, planned, stage)}
        return _of(
            PromptTaps,
            rewriter,
            block,
            tokens,
            stage,
            state=state,
            gains=gains,
            words=rewriter.words,
            **prompt,
        )
    kind = InletTaps if planned.where in (BEFORE, "around-attention") else GraphTaps
    found = _of(kind, rewriter, block, tokens, stage, state=state, gains=gains)
    found = replace(found, count=stage.count) if planned.where == BEFORE else found
    if across == 1:
        return found
    heads = block.core.heads, block.core.key_heads
    return Common(rewriter.op, found, across, found.count, *heads, tokens, stage.size)


def _of(
    kind: type[GraphTaps], rewriter: Rewriter, block: Block, tokens: ir.Value, stage: Stage, **more: Any
) -> GraphTaps:
    marks, entry, stream = rewriter.path.flow.marks, block.entry, rewriter.structure.stream
    size, batch = stage.size, rewriter.batch
    if stream.across > 1:
        size = None if size is None else repeated(rewriter.op, size, stream.across, stage.count)
        batch = batch if batch < 0 else batch * stream.across
        more["pictures"] = stream.rows
    return kind(
        rewriter.op,
        block.core,
        rewriter.shapes,
        marks,
        rewriter.plan.counts()[marks[block.core.key][0].stage],
        batch,
        tokens,
        size,
        rewriter.validity is not None or stage.empties,
        rewriter.plan.proportional_attention,
        entry=entry,
        entered=rewriter.reduced.get(entry, (entry,))[0],
        **more,
    )


def _before(rewriter: Rewriter, planned: PlannedSite, stage: Stage, role: str, number: int) -> Taps:
    """The taps of the tokens of a stage at the entry of this site's block or of one in front. Raises: UnsupportedError."""
    if not 0 <= number <= planned.block:
        raise UnsupportedError(
            f"block {planned.block}: {rewriter.plan.at(planned).name} reads a block in front as {role!r}, and "
            f"block {number} is none: reduce with it at a later block"
        )
    block, op = rewriter.structure.blocks[number], rewriter.op
    earlier = rewriter.stages[rewriter.path.flow.marks[block.core.key][0].stage]
    entered = rewriter.reduced.get(block.entry, (block.entry,))[0]
    rows = to_rows(op, entered, rewriter.held(block.entry), earlier.count)
    found: Taps = _of(PromptTaps, rewriter, block, rows, earlier, words=rewriter.words)
    return found if earlier is stage else Taken(op, found, since(op, stage, earlier))


def gained(rewriter: Rewriter, planned: PlannedSite, stage: Stage, name: str) -> ir.Value:
    """An input [B,N] float32 of the model, of the tokens before any has left, or like its picture. Raises: PlanError."""
    method = rewriter.plan.at(planned).name
    if stage.parent is not None or rewriter.plan.unit > 1:
        raise PlanError(
            f"block {planned.block}: {method} reads the input {name} [B,N] of all tokens of the model, "
            "and here they are fewer, or leave in groups: reduce with it at one block, the first, one token at a time"
        )
    if name not in rewriter.gained:
        batch = rewriter.batch if rewriter.batch > 0 else free_batch(rewriter.graph)
        dims = _latents(rewriter)[1:] if name == "update" else (stage.count,)
        rewriter.gained[name] = gain(rewriter.graph, name, [batch, *dims], method)
    return rewriter.gained[name]


def packed(rewriter: Rewriter) -> int:
    """U, where the tokens are made of packed latents [B,N,U] that a method reads the change of; else 0."""
    latents = _latents(rewriter) if any("update" in method.takes for method in rewriter.methods) else ()
    return latents[2] if len(latents) == 3 else 0


def _latents(rewriter: Rewriter) -> tuple[int, ...]:
    """The shape of the input that the tokens are made of: [B,U,h,w], or [B,N,U] of N tokens. Raises: UnsupportedError."""
    above = ancestors((rewriter.structure.blocks[0].entry,))
    found = [rewriter.shapes.of(value) for value in rewriter.graph.inputs if value in above]
    for dims in found:
        if len(dims) == 4 or (len(dims) == 3 and dims[1] == rewriter.structure.tokens):
            return dims
    raise UnsupportedError(
        "the method reads what the step before added to a latent picture [B,U,h,w], or to one that is packed into a row for each "
        f"of the {rewriter.structure.tokens} tokens, [B,N,U]; the tokens are made of no such input"
    )
