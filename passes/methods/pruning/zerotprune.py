"""Zero-TPrune: a random walk over the attention graph ranks the tokens; similar ones leave first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

EARLY, MIDDLE, LATE = 30, 5, 1
"""Steps of the walk in the first three blocks, those between, and the last three."""


@dataclass(frozen=True)
class ZeroTPrune(Method):
    """Rank tokens by weighted PageRank; drop the most similar of the lower half, then the lowest ranked.

    Rank: per head a walk s <- s A from a uniform start, then the mean over heads of s^2 (the order of the root
    mean square). All tokens walk, protected ones too. variant=paper takes only heads whose s, scaled to mean
    1, has a variance from least_variance to most_variance (all where none has), and drops in three steps: rank; of the
    less important half of the unprotected tokens the floor(similar * R) whose mean key has the most similar
    one in the other half leave (not more than there are); the walk is repeated without them, and
    the lowest ranked leave. variant=reference is the authors' earlier release: rows of A sharpened to the
    power 1 / 0.5, five steps, all heads, rank alone.
    The paper prunes behind the block: --site after-block.
    Options: variant; iterations (0: by depth: 30 in the first three blocks, 1 in the last three, else 5); temperature (0: 1
    in the paper, 0.5 in the reference); similar; least_variance; most_variance; order of the kept tokens: position or score.
    """

    name: ClassVar[str] = "zerotprune"
    summary: ClassVar[str] = "rank tokens by PageRank over attention, drop similar ones first"
    paper: ClassVar[str] = (
        "Wang et al., Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph, CVPR 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("attention", "metric")
    evidence: ClassVar[Evidence] = "independent implementation"
    systems: ClassVar[tuple[str, ...]] = ("Zero-TPrune",)
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "paper: gated heads and a similarity stage, whose code is not public; reference: the authors' earlier "
        "ranking alone, equal to its recorded outputs"
    )

    variant: str = scores.PAPER
    iterations: int = 0
    temperature: float = 0.0
    similar: float = 0.5
    least_variance: float = 0.01
    most_variance: float = 0.7
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        if self.iterations < 0 or self.temperature < 0 or not 0 <= self.similar <= 1:
            raise MethodError(
                f"options iterations={self.iterations}, temperature={self.temperature}, similar={self.similar} of "
                f"method {self.name!r}: expected 0 or more, 0 or more, and a share from 0 to 1"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        moves = self._moves(op, taps)
        alive = scores.present(op, taps)
        score = self._rank(op, moves, alive, site)
        similar = self._similar(site)
        if similar:
            alive = self._unlike(op, taps, site, score, alive, similar)
            if similar < site.removed:
                score = self._rank(op, moves, alive, site)
            score = op("Where", op("Greater", alive, 0.0), score, steps.LOWEST)
        return scores.pruned(op, taps, site, score, self.order)

    def _moves(self, op: Ops, taps: Taps) -> Value:
        """Probabilities [B,H,N,N] to go from a row to a column."""
        attention = taps.attention()
        temperature = self.temperature or (1.0 if self.variant == scores.PAPER else 0.5)
        if temperature == 1:
            return attention
        sharp = op("Pow", attention, 1 / temperature)
        return op("Div", sharp, op("Max", op("ReduceSum", sharp, steps.LAST, keepdims=1), scores.EPSILON))

    def _length(self, site: Site) -> int:
        if self.iterations or self.variant == scores.REFERENCE:
            return self.iterations or MIDDLE
        if site.block >= site.blocks - 3:
            return LATE
        return EARLY if site.block < 3 else MIDDLE

    def _rank(self, op: Ops, moves: Value, alive: Value | None, site: Site) -> Value:
        """Mean square over heads [B,N] of where the walk is; `alive` [B,N] is 0 for tokens that take no part."""
        if alive is None:
            walk = op.constant(np.full((1, 1, 1, site.tokens), 1 / site.tokens, np.float32))
        else:
            part = op("Unsqueeze", alive, np.array([1, 2]))
            walk = _shares(op, part)
        for _ in range(self._length(site)):
            walk = op("MatMul", walk, moves)
            if alive is not None:
                walk = _shares(op, op("Mul", walk, part))
        square = op("Squeeze", op("Mul", walk, walk), np.array([2]))
        if self.variant == scores.REFERENCE:
            return op("ReduceMean", square, axes=[1], keepdims=0)
        return scores.numbers(op, _head_mean(op, square, self._heads(op, walk, site)))

    def _heads(self, op: Ops, walk: Value, site: Site) -> Value:
        """1 for each head [B,H,1] whose variance is in range; all ones where none is."""
        away = op("Sub", op("Mul", op("Squeeze", walk, np.array([2])), float(site.tokens)), 1.0)
        variance = op("ReduceMean", op("Mul", away, away), axes=[2], keepdims=1)
        low = op("GreaterOrEqual", variance, self.least_variance)
        high = op("GreaterOrEqual", self.most_variance, variance)
        good = op("Cast", op("And", low, high), to=steps.FLOAT)
        return op("Where", op("Greater", op("ReduceMax", good, axes=[1], keepdims=1), 0.0), good, 1.0)

    def _similar(self, site: Site) -> int:
        """Tokens the similarity stage drops."""
        if self.variant == scores.REFERENCE:
            return 0
        return min(int(self.similar * site.removed), (site.tokens - site.protect) // 2)

    def _unlike(
        self, op: Ops, taps: Taps, site: Site, score: Value, alive: Value | None, count: int
    ) -> Value:
        """1 for the tokens [B,N] that the similarity stage leaves."""
        total = site.tokens - site.protect
        low = total // 2
        ranked = op(
            "TokenSelect",
            steps.free(op, scores.unpadded(op, taps, score), site),
            keep=total,
            protect=0,
            order=steps.ORDERS[steps.BY_SCORE],
        )
        ranked = op("Add", ranked, np.array(site.protect))
        # Squares of what is left stay finite in float32.
        metric = scores.numbers(op, taps.metric(), 1e15)
        length = op("Sqrt", op("ReduceSum", op("Mul", metric, metric), steps.LAST, keepdims=1))
        unit = steps.gather(op, op("Div", metric, op("Max", length, 1e-12)), ranked)
        above, below = steps.cut(op, unit, 0, total - low), steps.cut(op, unit, total - low, total)
        likeness = op("MatMul", below, op("Transpose", above, perm=[0, 2, 1]))
        best = op("ReduceMax", likeness, axes=[2], keepdims=0)
        place = op("TokenSelect", best, keep=count, protect=0, order=steps.ORDERS[steps.BY_POSITION])
        gone = scores.gather_row(op, steps.cut(op, ranked, total - low, total), place)
        left = scores.dropped(op, score, gone, site)
        return left if alive is None else op("Mul", left, alive)


def _shares(op: Ops, walk: Value) -> Value:
    """The same, adding up to 1."""
    return op("Div", walk, op("Max", op("ReduceSum", walk, steps.LAST, keepdims=1), scores.EPSILON))


def _head_mean(op: Ops, square: Value, weight: Value) -> Value:
    """Mean over heads of square [B,H,N] by weight [B,H,1]."""
    total = op("ReduceSum", op("Mul", square, weight), np.array([1]), keepdims=0)
    return op("Div", total, op("ReduceSum", weight, np.array([1]), keepdims=0))
