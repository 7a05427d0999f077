"""RATE: evict the tokens most like a few pivots, read off one random projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import directions, rows, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class Rate(Trained):
    """Keep the K tokens least like the mean of the pivots, pivots counting as 0, in ascending position.

    With unit rows x and the sum r of eight random directions, tokens are ranked by x r, descending. The spread D is the
    value of rank s minus that of rank N - s, s = max(1, floor(skip N)). Rounded x r (N / block) / D are buckets, and the
    first token of each is a pivot. Fewer tokens than `block`, or D at most 0: the first K stay.
    Protected tokens take no part; padding counts as zero rows and leaves first.
    Options: variant (see deviations); block; skip; directions; seed of their draw, which the release leaves to each process;
    weights: optional, directions [M,C], the directions themselves.
    """

    name: ClassVar[str] = "rate"
    summary: ClassVar[str] = "evict the tokens most like a few pivots of a random projection"
    paper: ClassVar[str] = (
        "redundancy-aware token eviction (RATE), a branch of vLLM, request for comments 45098"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("RATE",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "--image-pruning-rate, image_pruning_method rate"}
    optional: ClassVar[Mapping[str, str]] = {"directions": "M,C"}
    deviations: ClassVar[str] = (
        "variant=paper ranks in descending order, as the algorithm intends; variant=reference, the release as stored, ranks "
        "in ascending order, so that its spread is never positive and the first K tokens stay"
    )

    variant: str = scores.PAPER
    block: int = 32
    skip: float = 0.01
    directions: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.at_least(self.name, "block", self.block, 1)
        steps.at_least(self.name, "directions", self.directions, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens = site.tokens - site.protect
        if self.variant == scores.REFERENCE or tokens < self.block:
            score: Value = scores.filled(op, taps.tokens, 0.0, site.tokens)
        else:
            score = scores.behind_protected(op, op("Neg", self._alike(op, taps, site, tokens)), site)
        return scores.pruned(op, taps, site, score, steps.BY_POSITION)

    def _alike(self, op: Ops, taps: Taps, site: Site, tokens: int) -> Value:
        """How much each unprotected token is like the pivots: [B,T]."""
        unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
        drawn = directions.of_channels(self, "directions", self.directions, self.seed, site)
        drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        along = op("Squeeze", op("MatMul", unit, drawn.sum(axis=0)[:, None]), steps.LAST)
        value, order = op("TopK", along, np.array([tokens]), axis=1, largest=1)
        skipped = min(max(1, int(self.skip * tokens)), tokens - 1)
        high = steps.cut(op, value, skipped, skipped + 1)
        low = steps.cut(op, value, tokens - skipped, tokens - skipped + 1)
        spread = op("Sub", high, low)
        is_spread = op("Greater", spread, 0.0)
        scaled = op("Div", op("Mul", value, tokens / self.block), op("Where", is_spread, spread, 1.0))
        bucket = op("Round", scaled)
        opens = op("Less", steps.cut(op, bucket, 1, tokens), steps.cut(op, bucket, 0, tokens - 1))
        first = scores.filled(op, along, 1.0, 1)
        ranked = op("Concat", first, op("Cast", opens, to=steps.FLOAT), axis=1)
        pivot = op("ScatterElements", op("Mul", along, 0.0), order, ranked, axis=1)
        mean = scores.weighted_mean(op, pivot, unit)
        alike = op("ReduceSum", op("Mul", unit, mean), steps.LAST, keepdims=0)
        counts = op("And", is_spread, op("Less", pivot, 0.5))
        return op("Where", counts, alike, 0.0)
