"""TokenButler: keep the entries that a trained predictor, a small network beside the model, finds important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site, Taps, beyond
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod


@dataclass(frozen=True)
class TokenButler(CacheMethod):
    """Score an entry by the product of predicted keys with the last token's predicted query, and keep the best for that token.

    The predictor is a network of its own on the output of the first layer; what it predicts for this layer are inputs: `queries`
    [B,A,Q,W] and `keys` [B,H,N,W], W narrow. The `first` entries always stay. A choice holds for one token to come: dropped
    entries are asked for again, so that the host keeps the cache and reads K of it.
    Options: first; heads.
    """

    name: ClassVar[str] = "tokenbutler"
    summary: ClassVar[str] = "keep the entries that a trained predictor finds important for the next token"
    paper: ClassVar[str] = "Akhauri et al., TokenButler: Token Importance is Predictable, arXiv 2503.07518"
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys")
    evidence: ClassVar[Evidence] = "vectors"
    quota: ClassVar[str] = "a count a token instead of a threshold a head"
    systems: ClassVar[tuple[str, ...]] = ("TokenButler: the choice by what its predictor predicts",)

    first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "first", self.first, 0)

    def choose(self, op: Ops, taps: Taps, site: Site) -> Entries:
        last = steps.cut(op, beyond(taps, "logits"), site.asking - 1, site.asking, 2)
        score = self.by_head(op, op("Squeeze", last, np.array([2])), site)
        ahead = np.arange(site.tokens) < self.first
        return Entries(cache.best(op, score, self.lists(site), site.keep, site.tokens, ahead))

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + max(self.first, 1)
