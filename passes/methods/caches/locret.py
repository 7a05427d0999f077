"""Locret: small trained heads tell from an entry's own queries, keys and values how much it will matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site, Value
from tokenrt.passes.methods.parts import cache, layers, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class Locret(CacheMethod, Trained):
    """Score an entry by linear, SiLU, linear of its queries, keys and values of all heads in a row, one number a head of keys.

    Queries and keys are those before the rotary embedding, the queries of all N tokens among them. The `stable` last entries
    always stay, while more of a prompt is to come in chunks (0: the last chunk). Scores are handed on as the state score, for a
    cache that is joined with a next chunk on the host.
    Options: stable; heads; weights: fc1 [M,A*D+2*H*D] and fc2 [H,M].
    """

    name: ClassVar[str] = "locret"
    summary: ClassVar[str] = "keep the entries that trained heads rate highest, and the latest"
    paper: ClassVar[str] = (
        "Huang et al., Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads, arXiv 2410.01805"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys", "values")
    evidence: ClassVar[Evidence] = "vectors"
    needs: ClassVar[Mapping[str, str]] = {"fc1": "M,L", "fc2": "H,M"}
    systems: ClassVar[tuple[str, ...]] = ("Locret",)

    stable: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "stable", self.stable, 0)

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        if site.asking != site.tokens:
            raise PlanError(
                f"{self.name}: {site.asking} of {site.tokens} entries have queries, and the heads read those of all"
            )
        width = (site.shared + 2) * site.heads * site.width
        first, last = self.tensor("fc1", site), self.tensor("fc2", site)
        self.check("fc1", first, (len(first), width))
        self.check("fc2", last, (site.heads, len(first)))
        taps = taps.unrotated()
        parts = [_joined(op, part, site) for part in (taps.queries(), taps.keys(), taps.values())]
        hidden = layers.linear(op, op("Concat", *parts, axis=2), first, None)
        rated = layers.linear(op, op("Mul", hidden, op("Sigmoid", hidden)), last, None)
        score = self.by_key(op, op("Transpose", rated, perm=[0, 2, 1]))
        index = cache.beside(op, taps, score, self.lists(site), site, site.tokens - self.stable, self.stable)
        return Entries(index, {cache.SCORE: cache.kept_state(op, score, index)})

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + self.stable + 1


def _joined(op: Ops, heads: Value, site: Site) -> Value:
    """[B,H,N,D] -> [B,N,H*D]."""
    turned = op("Transpose", heads, perm=[0, 2, 1, 3])
    return op("Reshape", turned, np.array([0, site.tokens, -1]))
