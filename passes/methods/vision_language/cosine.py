"""Cosine: keep the tokens that are least like all the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import rows, scores, steps


@dataclass(frozen=True)
class Cosine(Method):
    """Keep the K tokens with the smallest mean cosine to all tokens, themselves included, in ascending position.

    The sum of cosines is one product with the sum of all unit rows: no N x N matrix. Protected tokens and padding are
    compared with nobody; padding leaves first.
    Options: channels: how many leading channels are compared, 0 for all (what DeepStack models append is not);
    order of the kept tokens: position, as published, or score (least alike first).
    """

    name: ClassVar[str] = "cosine"
    summary: ClassVar[str] = "keep the tokens with the smallest mean cosine to all tokens"
    paper: ClassVar[str] = (
        "position-preserving image token pruning (image_pruning_method cosine), a branch of vLLM"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Cosine",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "--image-pruning-rate, image_pruning_method cosine"}

    channels: int = 0
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.at_least(self.name, "channels", self.channels, 0)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens = steps.float_tokens(op, taps)
        if self.channels:
            tokens = steps.cut(op, tokens, 0, self.channels, axis=2)
        unit = rows.unit(op, taps, site, tokens)
        total = op("ReduceSum", unit, np.array([1]), keepdims=1)
        alike = op("ReduceSum", op("Mul", unit, total), steps.LAST, keepdims=0)
        score = scores.behind_protected(op, op("Neg", alike), site)
        return scores.pruned(op, taps, site, score, self.order)
