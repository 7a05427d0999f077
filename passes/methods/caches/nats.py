"""Neural Attention Search: a trained layer tells for how long an entry is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, layers, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class NeuralAttentionSearch(CacheMethod, Trained):
    """Keep the `window` last entries, and of those before the best by how much more global than local a trained layer rates them.

    The published layer gives each token one of three types: global (kept for good), local (kept until the next global token) or
    sliding (kept for a window). Its logits [B,N,3H], global first, come from what the block reads, the array hidden [B,N,C]. At a
    fixed count the types become an order: the global logit less the larger of the others.
    Options: window; heads; weights: types [3*H,C] with its bias.
    """

    name: ClassVar[str] = "nats"
    summary: ClassVar[str] = "keep the latest entries and those that a trained layer calls global"
    paper: ClassVar[str] = "Deng et al., Neural Attention Search, arXiv 2502.13251"
    reads: ClassVar[tuple[str, ...]] = ("hidden",)
    evidence: ClassVar[Evidence] = "mathematics"
    quota: ClassVar[str] = "a fixed count instead of all entries whose type says so"
    needs: ClassVar[Mapping[str, str]] = {"types.weight": "3*H,C", "types.bias": "3*H"}
    systems: ClassVar[tuple[str, ...]] = ("Neural Attention Search: types as an order",)

    window: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "window", self.window, 0)

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        weight, bias = self.tensor("types.weight", site), self.tensor("types.bias", site)
        self.check("types.weight", weight, (3 * site.heads, site.channels or weight.shape[1]))
        self.check("types.bias", bias, (3 * site.heads,))
        rated = layers.linear(op, taps.hidden(), weight, bias)
        kinds = op("Transpose", op("Reshape", rated, np.array([0, 0, 3, site.heads])), perm=[0, 3, 1, 2])
        other = op("ReduceMax", steps.cut(op, kinds, 1, 3, 3), axes=[3], keepdims=0)
        score = op("Sub", op("Squeeze", steps.cut(op, kinds, 0, 1, 3), np.array([3])), other)
        score = self.by_key(op, score)
        return Entries(
            cache.beside(op, taps, score, self.lists(site), site, site.tokens - self.window, self.window)
        )

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + self.window + 1
