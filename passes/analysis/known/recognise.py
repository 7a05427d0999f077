"""Trained architectures that spend less on tokens by their own design, each known by what its graph does and by no name in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import isqrt

import onnx_ir as ir

from tokenrt.passes.analysis.known.looks import Look, Scene
from tokenrt.passes.analysis.known.mixers import additive, pooling, routing


@dataclass(frozen=True)
class Known:
    """An architecture that a model is built like. system: as it was published; does: what was found, with the node."""

    system: str
    does: str

    def as_dict(self) -> dict[str, str]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        return f"built like {self.system}: {self.does}"


def recognise(scene: Scene) -> tuple[Known, ...]:
    """The architectures that a model is built like, each once, in the order of the table."""
    found = ((system, next(rule(scene), None)) for system, rule in RULES.items())
    return tuple(Known(system, does) for system, does in found if does is not None)


def _regions(scene: Scene) -> Iterator[str]:
    """TokenPacker: each coarse query attends to the s x s tokens of its own region."""
    for look in scene.looks:
        side = isqrt(look.keys)
        if (
            look.queries == 1
            and side > 1
            and side * side == look.keys
            and scene.pooled(look.query, look.key, 2)
        ):
            yield f"each of its coarse queries attends to the {side} x {side} tokens of its own region, at {_at(look.node)}"


def _frames(scene: Scene) -> Iterator[str]:
    """PVC: frames attend to their own places, and every place to its earlier frames."""
    for still, moving in combinations(scene.looks, 2):
        for space, time in ((still, moving), (moving, still)):
            square = space.queries == space.keys and time.queries == time.keys
            same = space.lead * space.keys == time.lead * time.keys and space.keys != time.keys
            if square and same and time.causal and not space.causal:
                yield (
                    f"every place attends to its own in the frames before, of {time.keys}, at {_at(time.node)}, and in each "
                    f"frame {space.keys} places attend to one another"
                )


def _sparse(scene: Scene) -> Iterator[str]:
    """FlexDiT: pooled tokens read the whole map, and the whole map reads them again."""
    for first, last in combinations(scene.looks, 2):
        reads = first.queries < first.keys and scene.pooled(first.query, first.key)
        back = (last.queries, last.keys) == (first.keys, first.queries)
        if reads and back and first.node in scene.above(last.key):
            yield (
                f"{first.queries} pooled tokens read all {first.keys} at {_at(first.node)}, and all read these again at "
                f"{_at(last.node)}"
            )


def _proxies(scene: Scene) -> Iterator[str]:
    """PT-DiT: a mean token for each window; these attend to one another, and all tokens to them."""
    for among, across in combinations(scene.looks, 2):
        fewer = among.queries == among.keys == across.keys < across.queries
        if fewer and among.node in scene.above(across.key) and scene.pooled(across.key, across.query):
            yield (
                f"{among.keys} proxies, means of windows, attend to one another at {_at(among.node)}, and all "
                f"{across.queries} tokens attend to them at {_at(across.node)}"
            )


def _words(scene: Scene) -> Iterator[str]:
    """Learn Your Tokens, HAT: characters of a word, then words, then the characters of each word again."""
    for inner, outer, last in combinations(scene.looks, 3):
        words = outer.keys
        rows = inner.lead == last.lead == outer.lead * words and words > 1 and outer.queries == words
        chain = inner.node in scene.above(outer.key) and outer.node in scene.above(last.key)
        if rows and chain and inner.queries == inner.keys > 1:
            yield (
                f"{words} words of {inner.keys} characters attend inside themselves at {_at(inner.node)}, as words at "
                f"{_at(outer.node)}, and inside again at {_at(last.node)}"
            )


def _at(node: ir.Node) -> str:
    return f"{node.op_type} node {node.name!r}"


Rule = Callable[[Scene], Iterator[str]]
RULES: dict[str, Rule] = {
    "TokenPacker": _regions,
    "PVC": _frames,
    "FlexDiT": _sparse,
    "PT-DiT (Qihoo-T2X)": _proxies,
    "Learn Your Tokens, HAT": _words,
    "PoNet": pooling,
    "BiFormer": routing,
    "CAS-ViT": additive,
}
"""What finds an architecture, by the systems it was published as."""

__all__ = ["Known", "Look", "recognise"]
