"""What a model offers: its blocks, its token axis, what follows the last block, and every refusal with its reason.

A site is offered where `reduce --method slice` takes it as its only one; what is told of the tail is what it does there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from tokenrt.passes.analysis.known.looks import Scene
from tokenrt.passes.analysis.known.recognise import Known, recognise
from tokenrt.passes.analysis.outlets.caches import caches
from tokenrt.passes.analysis.outlets.entries import NONE, Layers, layers
from tokenrt.passes.analysis.outlets.find import find
from tokenrt.passes.analysis.prepare import Prepared, Protect, ShapeOption, prepare
from tokenrt.passes.analysis.protected import Guard
from tokenrt.passes.analysis.residual import Refusal
from tokenrt.passes.analysis.structure import Block, Structure
from tokenrt.passes.graph.model import ModelLike, opset
from tokenrt.passes.graph.shapes import describe
from tokenrt.passes.offers import Offers, offers
from tokenrt.passes.planning.outputs.handover import layers_of
from tokenrt.passes.planning.plan import PLACES
from tokenrt.passes.planning.pools import told
from tokenrt.passes.planning.several import Routes
from tokenrt.passes.report import restorations


@dataclass(frozen=True)
class BlockRow:
    """One block as inspect shows it.

    width: channels of one head. sites: the places a reduction can sit; refused: the others, and why.
    """

    index: int
    heads: int
    width: int
    tokens: int
    attention: str
    masks: int
    sites: tuple[str, ...]
    stream: str
    refused: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "sites": list(self.sites), "refused": dict(self.refused)}


@dataclass(frozen=True)
class TokenAxis:
    """One tensor that counts tokens, and on which axes."""

    tensor: str
    shape: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class TransformerView:
    """One transformer as inspect shows it: its blocks, its tokens, and what follows the last block.

    restored: where all tokens are there again when some leave at the first site, as `reduce` reports it. caches: the outputs that
    hold the keys and values of each layer; prompt: whether the last token alone has seen all, as in a language model. across:
    rows of another axis (frames, where tokens are places) that lose tokens alike.
    """

    tokens: int
    protected: int
    grid: tuple[int, ...] | None
    channels: int
    blocks: tuple[BlockRow, ...]
    follows: tuple[str, ...]
    token_axes: tuple[TokenAxis, ...]
    restored: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    caches: tuple[str, ...] = ()
    prompt: bool = False
    across: int = 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            **({"across": self.across} if self.across > 1 else {}),
            "protected": self.protected,
            "protected_tokens": [guard.as_dict() for guard in self.guards],
            "grid": list(self.grid) if self.grid else None,
            "channels": self.channels,
            "blocks": [block.as_dict() for block in self.blocks],
            "follows": list(self.follows),
            "restored": list(self.restored),
            "caches": list(self.caches),
            "prompt": self.prompt,
            "token_axes": [{**axis.__dict__, "axes": list(axis.axes)} for axis in self.token_axes],
        }

    def shown(self, name: str) -> Any:
        """Its table and what there is to say about it; `name` stands in front where there are several."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        title = f"{len(self.blocks)} blocks, {self.tokens} tokens ({self.protected} protected), {self.channels} channels"
        table = Table(title=f"{name}{title}")
        for name in ("block", "heads", "head width", "tokens", "attention", "masks"):
            table.add_column(name, justify="right" if name not in ("attention",) else "left")
        table.add_column("sites")
        for row in self.blocks:
            table.add_row(
                *map(str, (row.index, row.heads, row.width, row.tokens)),
                row.attention,
                str(row.masks),
                ", ".join(row.sites),
            )
        cells = (
            "unknown: methods that need it take --grid"
            if self.grid is None
            else "x".join(map(str, self.grid))
        )
        lines = [f"protected: {guard}" for guard in self.guards]
        if self.across > 1:
            lines.append(
                f"one of two axes that attention runs over in turn: what leaves, leaves from all {self.across} rows of the other"
            )
        lines += self._decoder()
        lines.append(f"grid of the unprotected tokens: {cells}")
        lines += [f"refused: {text}" for text in _refused_sites(self.blocks)]
        lines += [f"after the last block: {text}" for text in self.follows]
        lines += [f"restored: {text}" for text in self.restored]
        lines.append(f"token axis: {len(self.token_axes)} tensors count tokens (listed with --json)")
        return Group(table, *(escape(line) for line in lines))

    def _decoder(self) -> list[str]:
        """What there is to say of a language model."""
        span = (
            "a language model's prompt: methods that select tokens keep their order (e.g. fastv, divprune); name the image "
            "tokens with --span S:E, that text stays; methods that read words read all behind the image, or those of --text S:E"
        )
        held = "cache: {} outputs, {} to {}, each as long as what reaches its layer; --cache gathered gives all one length"
        told = [held.format(len(self.caches), self.caches[0], self.caches[-1])] if self.caches else []
        return ([span] if self.prompt else []) + told


@dataclass(frozen=True)
class OutletView:
    """One output with a row for each token, that `reduce --site output` takes: how many, and what they are made of.

    fixed: rows that no token reaches and that never leave. made_of: tokens of a transformer in each row, 0 where it is not known,
    and then no attention can be read for them. beside: outputs that follow the same choice. unit: tokens that leave together
    inside the transformer where the output stays short, 0 where it cannot.
    """

    name: str
    tokens: int
    fixed: int
    grid: tuple[int, ...] | None
    transformer: int | None
    made_of: int
    beside: tuple[str, ...]
    unit: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "grid": list(self.grid) if self.grid else None, "beside": list(self.beside)}

    def __str__(self) -> str:
        rows = f"output {self.name} has {self.tokens} tokens"
        rows += f" ({self.fixed} of them made of none, which never leave)" if self.fixed else ""
        rows += f", a grid of {'x'.join(map(str, self.grid))}" if self.grid else ""
        rows += f", each of {self.made_of} behind the blocks" if self.made_of > 1 else ""
        rows += "" if self.made_of else ", of what is not known: methods that read attention are refused"
        rows += f"; {', '.join(self.beside)} follow the same choice" if self.beside else ""
        inside = (
            f"; --short {self.name} lets tokens leave inside, in whole units of {self.unit}"
            if self.unit > 1
            else ""
        )
        return f"{rows}: --site output:{self.name} reduces them{inside}"


@dataclass(frozen=True)
class Inspection:
    """The answer of `tokenrt inspect`; the counts of the first transformer are its own."""

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    transformers: tuple[TransformerView, ...]
    refusals: tuple[Refusal, ...]
    outlets: tuple[OutletView, ...] = ()
    known: tuple[Known, ...] = ()
    layers: Layers = NONE

    @property
    def first(self) -> TransformerView:
        """The first transformer, with no block where there is none."""
        return self.transformers[0] if self.transformers else TransformerView(0, 0, None, 0, (), (), ())

    @property
    def tokens(self) -> int:
        return self.first.tokens

    @property
    def protected(self) -> int:
        return self.first.protected

    @property
    def grid(self) -> tuple[int, ...] | None:
        return self.first.grid

    @property
    def channels(self) -> int:
        return self.first.channels

    @property
    def blocks(self) -> tuple[BlockRow, ...]:
        return self.first.blocks

    @property
    def follows(self) -> tuple[str, ...]:
        return self.first.follows

    @property
    def token_axes(self) -> tuple[TokenAxis, ...]:
        return self.first.token_axes

    def as_dict(self) -> dict[str, Any]:
        every = [transformer.as_dict() for transformer in self.transformers]
        return {
            "opset": self.opset,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            **self.first.as_dict(),
            **({"transformers": every} if len(every) > 1 else {}),
            "known": [each.as_dict() for each in self.known],
            "outlets": [outlet.as_dict() for outlet in self.outlets],
            "layers": [layer.as_dict() for layer in self.layers.found],
            "refusals": [refusal.as_dict() for refusal in self.refusals],
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.markup import escape

        ends = [f"input {text}" for text in self.inputs] + [f"output {text}" for text in self.outputs]
        lines = [*ends, *map(str, self.outlets), *self.layers.told(), *map(str, self.known)]
        lines += map(str, self.refusals)
        several = len(self.transformers) > 1
        parts: list[Any] = [
            transformer.shown(f"transformer {number}: " if several else "")
            for number, transformer in enumerate(self.transformers)
        ]
        return Group(*(parts or ["no transformer block can be reduced"]), *(escape(line) for line in lines))


def inspect(model: ModelLike, *, shape: ShapeOption = None, protect: Protect = None) -> Inspection:
    """Analyse a model without changing it. Raises: ModelError, ShapeError, UnsupportedError, PlanError.

    protect: tokens that shall never leave, as "0,-1,200:217" or a list of positions.

    Every site it offers is one that `reduce` takes with the method `slice`, alone and with one token leaving (around an
    attention, where slice does not sit, with its choice of tokens); every other is refused there for the reason told. Several
    sites at once, more tokens, or another method may be refused for reasons of their own.
    """
    prepared = prepare(model, shape, protect)
    offered = offers(prepared)
    return Inspection(
        opset=opset(prepared.model),
        inputs=tuple(_signature(value, prepared) for value in prepared.model.graph.inputs),
        outputs=tuple(_signature(value, prepared) for value in prepared.model.graph.outputs),
        transformers=tuple(_view(prepared, number, offered) for number in range(len(prepared.transformers))),
        refusals=prepared.refusals,
        outlets=_outlets(prepared, offered),
        known=recognise(Scene(prepared.model.graph, prepared.shapes)),
        layers=layers(
            prepared.model.graph, prepared.shapes, prepared.transformers, layers_of(prepared.model)
        ),
    )


def _outlets(prepared: Prepared, offered: Offers) -> tuple[OutletView, ...]:
    every = [
        outlet
        for outlet in find(prepared.model.graph, prepared.shapes, prepared.transformers)
        if outlet.groups is not None
    ]
    return tuple(
        OutletView(
            outlet.name,
            outlet.tokens,
            len(outlet.fixed),
            outlet.grid,
            None if outlet.source is None else outlet.source.transformer,
            0 if outlet.source is None else outlet.source.tokens.shape[1],
            tuple(other.name for other in every if other is not outlet and other.beside(outlet)),
            offered.short.get(outlet.name, 0),
        )
        for outlet in every
    )


def _view(prepared: Prepared, number: int, offered: Offers) -> TransformerView:
    structure, shapes = prepared.transformers[number], prepared.shapes
    routes = offered.routes(prepared, number)
    return TransformerView(
        tokens=structure.tokens,
        protected=structure.protect,
        guards=structure.guards,
        grid=structure.grid,
        channels=shapes.of(structure.blocks[0].entry)[-1],
        blocks=tuple(_row(block, number, offered) for block in structure.blocks),
        follows=_follows(structure, routes),
        token_axes=tuple(
            TokenAxis(str(value.name), describe(shapes.of(value)), tuple(mark.axis for mark in marks))
            for value, marks in structure.flow.marks.items()
            if marks
        ),
        restored=restorations(routes),
        caches=tuple(str(cache.output.name) for cache in caches(prepared.model.graph, structure, shapes)),
        prompt=structure.prompt,
        across=structure.stream.across,
    )


def _row(block: Block, transformer: int, offered: Offers) -> BlockRow:
    sites, refused = offered.at(transformer, block.index)
    return BlockRow(
        index=block.index,
        heads=block.core.heads,
        width=block.core.width,
        tokens=block.core.keys,
        attention="Attention node" if block.core.fused else "softmax",
        masks=len(block.core.masks),
        sites=sites,
        stream=str(block.output.name),
        refused=refused,
    )


def _refused_sites(blocks: Sequence[BlockRow]) -> list[str]:
    """The refused sites, those of several blocks with one reason together."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for where in PLACES:
        for block in blocks:
            if where in block.refused:
                numbers.setdefault((where, block.refused[where]), []).append(block.index)
    return [
        f"block{'s' * (len(found) > 1)} {', '.join(map(str, found))} {where}: {reason}"
        for (where, reason), found in numbers.items()
    ]


def _signature(value: ir.Value, prepared: Prepared) -> str:
    kind = value.dtype.numpy().name if value.dtype is not None else "unknown"
    dims = describe(prepared.shapes.of(value)) if prepared.shapes.known(value) else "[?]"
    return f"{value.name} {dims} {kind}"


def _follows(structure: Structure, routes: Routes) -> tuple[str, ...]:
    """How the model uses the tokens behind the last block, once some have left."""
    found = [
        f"protected tokens read by {node.op_type} node {node.name!r}"
        for node, marks in structure.flow.inputs.items()
        if node not in structure.body and node.op_type in ("Gather", "Slice", "Split")
        if marks[0] and not all(structure.flow.marks.get(value) for value in node.outputs)
    ]
    for path in routes.values():
        found += told(path.flow, structure)
        for stop in path.stops:
            if stop.node is None:
                found.append(f"{stop.reason}: tokens are restored for it")
            else:
                kind = "dense head, restored" if stop.kind == "grid" else "restored"
                found.append(f"{kind} before {stop.describe()}")
    return tuple(dict.fromkeys(found))
