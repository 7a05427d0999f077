"""SparseVLM: keep the tokens that the words which see the picture attend to; recycle some of the others into clusters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value, beyond
from tokenrt.passes.methods.parts import bipartite, centers, clusters, prompts, scores, steps
from tokenrt.passes.methods.parts.prompts import RATERS

FIRST, SECOND = "1", "2"
PLACES = "places"
RECYCLED, EACH = 0.3, 10


@dataclass(frozen=True)
class SparseVLM(Method):
    """Score a token by the attention of the raters to it, the words that resemble the picture more than words do on average.

    Raters, found once at the input embeddings: a word's share in the softmax over words of v . t, averaged over tokens v, is
    above the mean of the words. version=1: the best tokens stay, and of the R others the best M = floor(0.3 R) + 1 become
    floor(M / 10) + 1 clusters around density peaks, plain means that follow behind the kept ones. version=2: attention is
    divided by what a vector of ones has with itself at that rotary distance; the heads with the largest sums count, and nothing
    is recycled. Of counts that two splits leave, the one of more kept tokens.
    Options: version; clusters (0: as published); heads that count (version=2); base of the rotary embedding (version=2).
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = (
        "keep what the words that see the picture attend to, recycle some of the rest into clusters"
    )
    paper: ClassVar[str] = (
        "Zhang et al., SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, ICML 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("text_attention", "text", "stream", "tokens", "state")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "prefill"
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "counts a layer, as in the released lists, where the paper takes the rank of the attention"
    )
    layers: ClassVar[tuple[str, ...]] = ("input",)
    systems: ClassVar[tuple[str, ...]] = ("SparseVLM",)
    deviations: ClassVar[str] = (
        "the noise of 1e-6 that the release adds to densities is left out (ties go by index), and so is the 1e-6 in the divisors "
        "of its means. In a model's prompt a cluster stands at the place of its last member, as a causal mask needs; the "
        "release puts clusters behind the picture and, in version 1, numbers the positions anew"
    )

    version: str = FIRST
    clusters: int = 0
    heads: int = 14
    base: float = 10000.0

    def __post_init__(self) -> None:
        steps.choice(self.name, "version", self.version, (FIRST, SECOND))
        steps.at_least(self.name, "clusters", self.clusters, 0)
        steps.at_least(self.name, "heads", self.heads, 1)
        if not self.base > 0:
            raise MethodError(f"option base={self.base} of method {self.name!r}: expected more than 0")

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        raters = prompts.raters(op, taps, site)
        attention = scores.numbers(op, beyond(taps, "text_attention"))
        if self.version == SECOND:
            return self._by_distance(op, taps, site, attention, raters)
        score = _rated(op, op("ReduceMean", attention, axes=[1], keepdims=0), raters)
        kept, count = self._split(site)
        return replace(_recycled(op, taps, site, score, kept, count), state={RATERS: raters})

    def _by_distance(self, op: Ops, taps: Taps, site: Site, attention: Value, raters: Value) -> Reduction:
        if site.width % 2:
            raise MethodError(
                f"{self.name} with version=2 turns heads of an even width, and here it is {site.width} or unknown; apply_method "
                "knows it by the tensor keys [B,H,N,D]"
            )
        every = steps.numbered(op, taps.tokens, site.tokens)
        places = taps.state.get(PLACES, op("Sub", every, np.array(site.protect)))
        first = (site.tokens if site.initial is None else site.initial) - site.protect + site.gap
        fair = op(
            "Div", attention, op("Unsqueeze", self._alone(op, attention, places, first, site), np.array([1]))
        )
        rated = op("Mul", steps.free(op, fair, site, 3), op("Unsqueeze", raters, np.array([1, 3])))
        total = op("ReduceSum", rated, np.array([2, 3]), keepdims=0)
        count = min(self.heads, site.heads)
        _, best = op("TopK", total, np.array([count]), axis=1, largest=1)
        chosen = op(
            "ScatterElements", op("Mul", total, 0.0), best, scores.filled(op, total, 1.0, count), axis=1
        )
        by_head = op("Mul", fair, op("Unsqueeze", chosen, np.array([2, 3])))
        mean = op("Mul", op("ReduceSum", by_head, np.array([1]), keepdims=0), 1 / count)
        made = scores.pruned(op, taps, site, _rated(op, mean, raters), steps.BY_POSITION)
        state = {RATERS: raters, PLACES: scores.gather_row(op, places, made.position)}
        return replace(made, state=state)

    def _alone(self, op: Ops, attention: Value, places: Value, first: int, site: Site) -> Value:
        """What vectors of ones have with each other at the distance of each word and token: [B,T,N].

        2 / sqrt(D) times the sum of cos(d theta) over the D / 2 angles; the first word stands right behind the tokens.
        """
        words = op(
            "Squeeze", op("Slice", op("Shape", attention), np.array([2]), np.array([3])), np.array([0])
        )
        word = op("Range", np.array(0), words, np.array(1))
        distance = op(
            "Sub",
            op("Unsqueeze", op("Add", word, np.array(first)), np.array([0, 2])),
            op("Unsqueeze", places, np.array([1])),
        )
        angles = self.base ** (-np.arange(0, site.width, 2) / site.width)
        turned = op(
            "Mul",
            op("Unsqueeze", op("Cast", distance, to=steps.FLOAT), np.array([3])),
            angles.astype(np.float32),
        )
        total = op("ReduceSum", op("Cos", turned), np.array([3]), keepdims=0)
        return op("Mul", total, 2 * site.width**-0.5)

    def _split(self, site: Site) -> tuple[int, int]:
        """How many of the outputs are kept tokens, and how many clusters."""
        free, made = site.tokens - site.protect, site.keep - site.protect
        if self.clusters:
            if self.clusters > free - made:
                raise PlanError(
                    f"block {site.block}: {self.name} makes clusters={self.clusters} of the {free - made} tokens that go; keep "
                    f"{site.tokens - self.clusters} or fewer, or say fewer clusters"
                )
            return made - self.clusters, self.clusters
        return next(
            (kept, made - kept) for kept in range(made - 1, -1, -1) if made - kept == _published(free - kept)
        )

    def fewest(self, tokens: int, protect: int) -> int:
        if self.version == SECOND:
            return protect + 1
        return protect + 1 + (self.clusters or _published(tokens - protect - 1))


def _candidates(left: int) -> int:
    """How many of the tokens that leave are recycled."""
    return int(left * RECYCLED) + 1


def _published(left: int) -> int:
    return int(_candidates(left) / EACH) + 1


def _rated(op: Ops, attention: Value, raters: Value) -> Value:
    """The mean over raters [B,T] of attention [B,T,N]: [B,N]."""
    return op("Squeeze", scores.weighted_mean(op, raters, attention), np.array([1]))


def _recycled(op: Ops, taps: Taps, site: Site, score: Value, kept: int, count: int) -> Reduction:
    """The best `kept` tokens by position, then `count` clusters of the next best."""
    own = steps.free(op, scores.unpadded(op, taps, score), site)
    size = max(_candidates(site.tokens - site.protect - kept), count)
    ranked = op("TokenSelect", own, keep=kept + size, protect=0, order=steps.ORDERS[steps.BY_SCORE])
    best = bipartite.ascending(op, steps.cut(op, ranked, 0, kept), kept)
    head = clusters.whole(op, taps, site, best)
    rest = op("Add", steps.cut(op, ranked, kept, kept + size), np.array(site.protect))
    rows = clusters.finite(op, steps.gather(op, steps.float_tokens(op, taps), rest))
    center, group = op(
        "TokenPeaks", centers.scaled_rows(op, rows, size), keep=count, neighbours=min(count, size)
    )
    weight = op("Cast", clusters.members(op, group, count), to=steps.FLOAT)
    there = scores.present(op, taps)
    if there is not None:
        weight = op("Mul", weight, op("Unsqueeze", scores.gather_row(op, there, rest), np.array([1])))
    share = op("Div", weight, op("Max", op("ReduceSum", weight, steps.LAST, keepdims=1), 1.0))
    mean = op("CastLike", op("MatMul", share, rows), taps.tokens)
    went = steps.kept_map(op, taps.tokens, head, site.protect + kept, site)
    went = op("ScatterElements", went, rest, op("Add", group, np.array(site.protect + kept)), axis=1)
    total = None
    if taps.size is not None:
        total = op(
            "Concat",
            steps.gather(op, taps.size, head),
            op("MatMul", weight, steps.gather(op, taps.size, rest)),
            axis=1,
        )
    else:
        ones = scores.filled(op, own, 1.0, site.protect + kept, 1)
        total = op("Concat", ones, op("ReduceSum", weight, steps.LAST, keepdims=1), axis=1)
    return Reduction(
        op("Concat", steps.gather(op, taps.tokens, head), mean, axis=1),
        total,
        op("Concat", head, op("GatherElements", rest, center, axis=1), axis=1),
        went,
    )
