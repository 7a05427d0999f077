"""SnapKV: keep the entries that the last tokens of the prompt attend to, and their neighbours."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site, Value
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps

MEAN, MOST = "mean", "max"


@dataclass(frozen=True)
class SnapKV(CacheMethod):
    """Keep the last w entries, and of those before the K - w best by the attention of the last w tokens, added up and pooled.

    Pooling runs over `kernel` neighbours; the mean divides by all of them at the ends too, as released. Softmax is over all N
    entries, under a causal mask.
    Options: window w (0: half of K, 32 at most); kernel; pool: mean, or max; heads.
    """

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = (
        "keep the entries that the last tokens of the prompt attend to, and their neighbours"
    )
    paper: ClassVar[str] = (
        "Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("SnapKV",)
    deviations: ClassVar[str] = (
        "entries come out by position, where the release has them by falling score and then the window; heads of queries that "
        "share keys have theirs added up, where it copies the keys for each"
    )

    window: int = 0
    kernel: int = 5
    pool: str = MEAN

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "window", self.window, 0)
        steps.choice(self.name, "pool", self.pool, (MEAN, MOST))
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise MethodError(f"option kernel={self.kernel} of method {self.name!r}: expected an odd number")

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        window = self.window or min(site.keep // 2, 32)
        if not window < site.keep or window > site.asking:
            raise PlanError(
                f"{self.name}: a window of {window} tokens must be smaller than the {site.keep} entries that stay, and no more "
                f"than the {site.asking} tokens with queries; say it with the option window"
            )
        free = site.tokens - window
        rows = range(site.asking - window, site.asking)
        score = self.by_head(op, cache.received(op, taps, site, taps.attention(rows), rows), site)
        pooled = self._pooled(op, score, free)
        return Entries(cache.beside(op, taps, pooled, self.lists(site), site, free, window))

    def _pooled(self, op: Ops, score: Value, free: int) -> Value:
        """The first `free` entries of the score [B,L,N], each with its neighbours among them: [B,L,free]."""
        own, half = steps.cut(op, score, 0, free, 2), self.kernel // 2
        edge = op("Mul", steps.cut(op, own, 0, 1, 2), 0.0)
        edge = op("Add", edge, 0.0 if self.pool == MEAN else steps.LOWEST)
        padded = op("Concat", *[edge] * half, own, *[edge] * half, axis=2)
        shifted = [steps.cut(op, padded, shift, shift + free, 2) for shift in range(self.kernel)]
        how = "Add" if self.pool == MEAN else "Max"
        total = functools.reduce(lambda left, right: op(how, left, right), shifted)
        return op("Mul", total, 1 / self.kernel) if self.pool == MEAN else total

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + 2
