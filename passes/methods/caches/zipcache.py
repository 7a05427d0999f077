"""ZipCache: find the salient entries, which are kept exact while the others are stored in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps


@dataclass(frozen=True)
class ZipCache(CacheMethod):
    """Score an entry by the attention of the probes to it, divided by how many probes can see it; the best K are salient.

    Probes are the last `share` of the Q tokens that ask, and as many others, drawn once by the seed. Published: 60 % are salient
    and take 4 bits, the others 2; which bits an entry takes is the host's, this is the choice, and the cache stays whole.
    Padding does not probe.
    Options: share; seed; heads.
    """

    name: ClassVar[str] = "zipcache"
    summary: ClassVar[str] = "choose the salient entries by attention that counts early and late ones alike"
    paper: ClassVar[str] = (
        "He et al., ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys")
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("ZipCache: the choice of salient entries",)
    thins: ClassVar[bool] = False

    share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "seed", self.seed, 0)
        if not 0 < self.share <= 1:
            raise MethodError(
                f"option share={self.share} of method {self.name!r}: expected more than 0 and at most 1"
            )

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        probes = self.probes(site.asking)
        seen = cache.seen(site)[probes].sum(axis=0)
        fair = op(
            "Div",
            cache.received(op, taps, site, taps.attention(probes.tolist()), probes.tolist()),
            np.maximum(seen, 1).astype(np.float32),
        )
        score = self.by_head(op, fair, site)
        return Entries(cache.best(op, taps, score, self.lists(site), site.keep, site.tokens))

    def probes(self, asking: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Which of Q tokens probe, ascending: the last ones, and as many of the others."""
        last = max(round(self.share * asking), 1)
        drawn = np.random.default_rng(self.seed).permutation(asking - last)[:last]
        return np.sort(np.concatenate([drawn, np.arange(asking - last, asking)]))
