"""H2O: keep the entries that all tokens so far attended to most, and the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps


@dataclass(frozen=True)
class H2O(CacheMethod):
    """Keep the `recent` last entries, and of those before the best by attention received, added up over all tokens that asked.

    Sums go on from call to call: the state score [B,H,K] of the entries that stay comes back with the next call, whose Q tokens
    stand behind them.
    form=drop: K - recent heavy hitters. form=mask, the release that masks: its window counts the token to come, so that one
    less is kept of those that are there, and the entry before the window is never heavy.
    Options: recent (0: half of K); form; heads.
    """

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "keep the entries with the most attention so far, and the latest"
    paper: ClassVar[str] = (
        "Zhang et al., H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, NeurIPS 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys", "state")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("H2O",)

    recent: int = 0
    form: str = cache.DROP

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "recent", self.recent, 0)
        steps.choice(self.name, "form", self.form, cache.FORMS)

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        score = self.by_head(op, cache.received(op, taps, site, taps.attention()), site)
        return cache.heavy(
            op, taps, site, score, self.lists(site), self.latest(site), masked=self.form == cache.MASK
        )

    def latest(self, site: Site) -> int:
        """How many of the last entries stay."""
        recent = self.recent or site.keep // 2
        if recent >= site.keep:
            raise PlanError(
                f"{self.name}: {recent} recent entries leave none of {site.keep} for heavy hitters"
            )
        return recent

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + self.recent + 1
