"""DyCoke, the stage of the cache: of the entries of the video keep those that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps


@dataclass(frozen=True)
class DyCokeCache(CacheMethod):
    """Keep all entries outside the video, and of those inside the best by the last token's attention, averaged over heads.

    Published while decoding, whenever attention has changed, cosine below 0.9 to that of the last time, which the host sees: it
    asks for the choice again, of the whole cache, and the model reads K of it. All heads keep the same entries.
    Options: start and length of the video, counted without padding (length 0: to the end).
    """

    name: ClassVar[str] = "dycoke_cache"
    summary: ClassVar[str] = "thin the entries of a video to what the last token attends to"
    paper: ClassVar[str] = (
        "Tao et al., DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models, CVPR 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("DyCoke: thinning the cache",)

    heads: str = cache.COMMON
    start: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "start", self.start, 0)
        steps.at_least(self.name, "length", self.length, 0)

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        end = self.start + self.length if self.length else site.tokens
        outside = site.tokens - (end - self.start)
        if end > site.tokens or end <= self.start or outside > site.keep:
            raise PlanError(
                f"{self.name}: {site.keep} of {site.tokens} entries cannot stay, with a video of entries {self.start} to "
                f"{end - 1} and {max(outside, 0)} entries outside it"
            )
        last = taps.attention([site.asking - 1])
        score = self.by_head(op, op("Squeeze", last, np.array([2])), site)
        beside = op("Not", cache.within(op, taps, site, self.start, end))
        return Entries(cache.best(op, taps, score, self.lists(site), site.keep, site.tokens, beside))
