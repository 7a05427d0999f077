"""TokenButler: keep the entries that a trained predictor, a small network beside the model, finds important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps


@dataclass(frozen=True)
class TokenButler(CacheMethod):
    """Score an entry by the product of predicted keys with the last token's predicted query, and keep the best for that token.

    The predictor is a network of its own on the output of the first layer; what it predicts for this layer are inputs: `queries`
    [B,A,Q,W] and `keys` [B,H,N,W], W narrow; a model gains them as inputs of the predictor's width. The `first` entries always
    stay. A choice holds for one token to come: dropped entries are asked for again, so that the host keeps the cache and reads K
    of it, which the model tells.
    Options: width W, needed in a model; first; heads.
    """

    name: ClassVar[str] = "tokenbutler"
    summary: ClassVar[str] = "keep the entries that a trained predictor finds important for the next token"
    paper: ClassVar[str] = "Akhauri et al., TokenButler: Token Importance is Predictable, arXiv 2503.07518"
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys")
    evidence: ClassVar[Evidence] = "vectors"
    quota: ClassVar[str] = "a count a token instead of a threshold a head"
    systems: ClassVar[tuple[str, ...]] = ("TokenButler: the choice by what its predictor predicts",)
    thins: ClassVar[bool] = False

    width: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "width", self.width, 0)
        steps.at_least(self.name, "first", self.first, 0)

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        last = taps.predicted(self.width).logits([site.asking - 1])
        score = self.by_head(op, op("Squeeze", last, np.array([2])), site)
        ahead = cache.within(op, taps, site, 0, self.first)
        return Entries(cache.best(op, taps, score, self.lists(site), site.keep, site.tokens, ahead))

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + max(self.first, 1)
