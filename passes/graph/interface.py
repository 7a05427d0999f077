"""What a model shows to its user: the names, order, element types and shapes of its inputs and outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from tokenrt.passes.graph.shapes import Dims, declared

KEPT, MAP = "kept_index", "token_source_map"
"""Outputs a reduced model gains: the original position of each token that stayed, or the token each original one is part of."""
GONE = "tokenrt.dropped"
"""Where the metadata of a reduced model names outputs of the original that it does not have any more."""
GAINED: Mapping[str, str] = {
    "text": "embeddings of the words that come with the picture, from the language model's own table",
    "text_mask": "1 for words, 0 for padding",
    "quotas": "tokens that stay of each group; those of a picture add up to the tokens that are left",
    "segments": "the output that each token goes to, counted from the first that is not protected; -1: to none",
    "importance": "a score for each token of the output, the larger the more it matters",
    "update": "what the step before added to the latent picture",
    "noise": "numbers added to the logits of attention, drawn from Gumbel's distribution",
    "temperature": "what the logits of attention are divided by in this call",
    "predicted_queries": "the query of the last token that a predictor gives for this layer",
    "predicted_keys": "the keys of all entries that a predictor gives for this layer",
}
"""Inputs a reduced model gains for a method, and what they hold; those of a layer's cache end in its number."""
PAST, PRESENT = "past_", "present_"
"""How the names of inputs begin that a step takes from the one before, and those of the outputs that it hands on."""

CHOSEN, SALIENT, SCORE = "cache_index", "salient_index", "score"
"""Of a layer's cache, its number behind: outputs that tell the entries it kept, or those of a whole one that matter most; and
what its entries have added up, PAST and PRESENT."""

CACHES = "tokenrt.cache"
"""The metadata of a model that holds what its caches are."""


def caches(model: ir.Model) -> dict[str, Any]:
    """What a model that was reduced says of its caches: those of each layer, and the next position; nothing for any other."""
    made: dict[str, Any] = json.loads(model.metadata_props.get(CACHES, "{}"))
    return made


def at_site(name: str, place: int) -> str:
    """The name of a map that tells where tokens are behind a plan's site, counted from 0, and not behind its last."""
    return f"{name}_site{place}"


def of_layer(name: str, layer: int) -> str:
    """The name of an input or output that there is for each layer."""
    return f"{name}_layer{layer}"


def holds(name: str) -> str:
    """What an input that a reduced model gained holds; nothing for any other."""
    return GAINED.get(re.sub(r"_layer\d+$", "", name), "")


def is_gained(name: str) -> bool:
    """Whether an input of this name is one that a reduced model may have gained."""
    return bool(holds(name)) or name.startswith(PAST)


@dataclass(frozen=True)
class Port:
    """One input or output, as the model declares it; None for a type, a shape or a size that it leaves open."""

    name: str
    dtype: ir.DataType | None
    dims: tuple[int | None, ...] | None = None

    def fits(self, other: Port) -> bool:
        """Whether nothing that both say differs."""
        if None not in (self.dtype, other.dtype) and self.dtype != other.dtype:
            return False
        if self.dims is None or other.dims is None:
            return True
        return len(self.dims) == len(other.dims) and all(
            a is None or b is None or a == b for a, b in zip(self.dims, other.dims, strict=True)
        )

    def __str__(self) -> str:
        dims = "" if self.dims is None else f"[{','.join('?' if d is None else str(d) for d in self.dims)}]"
        return f"{self.name!r} {self.dtype.name.lower() if self.dtype is not None else '?'}{dims}"


@dataclass(frozen=True)
class Interface:
    """The inputs a run must give, and the outputs it gets, in order.

    An input with a default value (an initializer of the same name) is no input here: its value is a constant.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        graph = model.graph
        given = (value for value in graph.inputs if value.name not in graph.initializers)
        return cls(_ports(given), _ports(graph.outputs))

    def with_outputs(self, added: Iterable[tuple[str, ir.DataType]]) -> Interface:
        """The same with further outputs behind those it has."""
        return replace(self, outputs=(*self.outputs, *(Port(name, kind) for name, kind in added)))

    def with_inputs(self, added: Iterable[Port]) -> Interface:
        """The same with further inputs behind those it has."""
        return replace(self, inputs=(*self.inputs, *added))

    def changed(self, dims: Mapping[str, Dims], gone: Iterable[str] = ()) -> Interface:
        """The same with other shapes of these outputs, as inference has them, and without those that are gone."""
        lost = {*gone}
        kept = (port for port in self.outputs if port.name not in lost)
        return replace(
            self,
            outputs=tuple(
                replace(port, dims=declared(dims[port.name])) if port.name in dims else port for port in kept
            ),
        )

    def differences(self, other: Interface) -> list[tuple[str, str]]:
        """Pairs (what was expected, what came) where another interface is not this one."""
        found: list[tuple[str, str]] = []
        for what, mine, theirs in (
            ("inputs", self.inputs, other.inputs),
            ("outputs", self.outputs, other.outputs),
        ):
            if [port.name for port in mine] != [port.name for port in theirs]:
                found.append((f"{what} {_list(mine)}", f"{what} {_list(theirs)}"))
                continue
            found.extend(
                (f"{what[:-1]} {a}", f"{b}") for a, b in zip(mine, theirs, strict=True) if not a.fits(b)
            )
        return found


def _ports(values: Iterable[ir.Value]) -> tuple[Port, ...]:
    return tuple(Port(str(value.name), value.dtype, _dims(value)) for value in values)


def _dims(value: ir.Value) -> tuple[int | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _list(ports: tuple[Port, ...]) -> str:
    return ", ".join(port.name for port in ports) or "none"
