"""What two forms of one reduction choose: which tokens, and how near a tie each was that only one of them chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.checking.check_data import Array
from tokenrt.passes.ops import DOMAIN, OPERATORS

PREFIX = "tokenrt_choice_"
"""Begins the names of the outputs that tell scores and choices."""

PAIRS = ("value", "source", "destination")
TELL = {"TokenSelect": ("score", "index"), "TokenMatch": PAIRS, "TokenMerge": PAIRS}
"""Values of the operators whose choice is compared: the score [B,S], who was chosen [B,R], and whom each of them joins."""

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Site:
    """One choice of a model: the operator, how many it keeps, how many stay unasked, and the sources of a matching."""

    operator: str
    keep: int
    protect: int
    sources: tuple[int, ...]

    def rated(self, score: Array) -> tuple[Array, list[int]]:
        """Scores [S] in float64 that decide, and the token each is of. What is not finite is as low or high as the rest."""
        tokens = list(self.sources) or list(range(self.protect, len(score)))
        wide = score.astype(np.float64)[-len(tokens) :]
        known = wide[np.isfinite(wide)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
        return np.nan_to_num(wide, nan=low, neginf=low, posinf=high), tokens


@dataclass(frozen=True)
class Choices:
    """Choices of two forms, over all sites and samples.

    compared: those whose sample chose alike at every site before; after another choice a site sees other tokens.
    samples, alike: how many there are, and how many chose alike at every site. tokens: chosen by one form alone.
    joined: chosen by both, and joined with another token (of a merging). margin: the largest distance of the score of
    one of `tokens` from the lowest score chosen, in standard deviations of the site's scores; near_ties: whether each is
    within twice the largest difference that the forms have in a score there, so rounding alone explains it.
    """

    sites: int
    compared: int
    samples: int
    alike: tuple[int, ...]
    tokens: int
    joined: int
    margin: float
    near_ties: bool

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "alike": len(self.alike), "margin": round(self.margin, 5)}

    def __str__(self) -> str:
        told = f"{len(self.alike)} of {self.samples} samples choose alike at all {self.sites} sites"
        if len(self.alike) == self.samples:
            return told
        ties = "near ties" if self.near_ties else "no ties"
        return (
            f"{told}; where the others first differ, {self.tokens} tokens are chosen by one form alone "
            f"({ties}: at most {self.margin:.1%} of a standard deviation from the cut) and {self.joined} join another token"
        )


def expose(before: ir.Model, after: ir.Model) -> tuple[Site, ...]:
    """Make what both models score and choose further outputs, in place; nothing where they do not choose alike by design."""
    nodes = [_choosing(model) for model in (before, after)]
    sites = [tuple(map(site_of, found)) for found in nodes]
    if not sites[0] or sites[0] != sites[1]:
        return ()
    for model, found in zip((before, after), nodes, strict=True):
        for number, node in enumerate(found):
            for name, value in _told(node):
                copy = ir.node("Identity", [value], name=f"{PREFIX}{number}_{name}")
                copy.outputs[0].name, copy.outputs[0].type = copy.name, value.type
                copy.outputs[0].shape = value.shape
                model.graph.append(copy)
                model.graph.outputs.append(copy.outputs[0])
    return sites[0]


def compared(sites: Sequence[Site], before: Sequence[Run], after: Sequence[Run]) -> Choices:
    """Compare the choices of runs of the exposed models on the same inputs."""
    compared = tokens = joined = samples = 0
    alike: list[int] = []
    margin, near_ties = 0.0, True
    for one, other in zip(before, after, strict=True):
        rows = len(np.asarray(one[f"{PREFIX}0_{TELL[sites[0].operator][0]}"]))
        left = set(range(rows))
        for number, site in enumerate(sites):
            pair = [
                [np.asarray(run[f"{PREFIX}{number}_{name}"]) for name in TELL[site.operator]]
                for run in (one, other)
            ]
            for row in sorted(left):
                compared += 1
                apart, rejoined, distance, tie = _differ(
                    site, *([array[row] for array in form] for form in pair)
                )
                tokens, joined = tokens + apart, joined + rejoined
                margin, near_ties = max(margin, distance), near_ties and tie
                left -= {row} if apart or rejoined else set()
        alike += [samples + row for row in sorted(left)]
        samples += rows
    return Choices(len(sites), compared, samples, tuple(alike), tokens, joined, margin, near_ties)


def _differ(site: Site, one: Sequence[Array], other: Sequence[Array]) -> tuple[int, int, float, bool]:
    """Tokens chosen by one form alone, tokens that join another, the largest margin, and whether all are near ties."""
    told, tokens = site.rated(one[0])
    place = {token: index for index, token in enumerate(tokens)}
    first, again = ({place[token] for token in form[1].tolist() if token in place} for form in (one, other))
    joins, rejoins = (dict(zip(form[1].tolist(), form[-1].tolist(), strict=True)) for form in (one, other))
    rejoined = sum(rejoins.get(token, slot) != slot for token, slot in joins.items()) if len(one) > 2 else 0
    swapped = sorted(first ^ again)
    if not swapped:
        return 0, rejoined, 0.0, True
    margins = np.abs(told[swapped] - told[sorted(first)].min())
    error = np.abs(told - site.rated(other[0])[0]).max()
    return (
        len(swapped),
        rejoined,
        float(margins.max() / (told.std() or 1.0)),
        bool((margins <= 2 * error).all()),
    )


def _choosing(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.domain == DOMAIN and node.op_type in TELL and node.op_identifier() in model.functions
    ]


def site_of(node: ir.Node) -> Site:
    keep, protect = (node.attributes.get_ints(name) or (0,) for name in ("keep", "protect"))
    return Site(node.op_type, keep[0], protect[0], tuple(node.attributes.get_ints("sources") or ()))


def _told(node: ir.Node) -> list[tuple[str, ir.Value]]:
    operator = OPERATORS[node.op_type]
    values = dict(zip((*operator.inputs, *operator.outputs), (*node.inputs, *node.outputs), strict=True))
    return [(name, value) for name in TELL[node.op_type] if (value := values[name]) is not None]
