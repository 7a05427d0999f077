"""PruMerge: the tokens with the most class attention, each with a weighted sum of those nearest to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, recycling, rows, scores, steps

MIDDLE = np.array([1])
TAKEN = -np.inf
"""Behind padding, whose score is the lowest number there is."""


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep as centres the tokens with the most class attention a, and one token for the rest.

    A centre becomes x_i + the sum of a_j x_j over the 32 other tokens of largest cosine of keys, centres among them; the last
    token is the sum of a_j x_j over all that are no centre; neither is divided by its weights. Keys and the class token's
    query are those of all heads in a row, and a is over all tokens, the class token's own column included; the class token
    must lead as a protected token for that. Plus: beside the m most attentive tokens, samples at every s-th token are
    centres. Padding has no weight and no likeness.
    Options: plus; attentive m (0: half of the centres); every s (0: floor(T / m)); first sample (with every; else s // 2);
    score: joined (all heads one), class (the mean over heads), received or auto; order of the centres: position, or score (as
    published: by falling attention, then the samples); variant (see deviations).
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = (
        "keep the tokens with the most class attention, each with a sum of those nearest to it"
    )
    paper: ClassVar[str] = (
        "Shang et al., LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys", "class_attention", "received_attention", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the release may take as many centres as there are outliers of attention (1.5 interquartile ranges above the third "
        "quartile); here K is fixed"
    )
    home: ClassVar[Home] = "features"
    systems: ClassVar[tuple[str, ...]] = ("PruMerge",)
    deviations: ClassVar[str] = (
        "plus, variant=reference: a sample that is attentive too is a centre twice, and as many of the first of the others are "
        "left out of the last token; variant=paper: the samples that are left, then the best other tokens, fill up the centres"
    )

    plus: bool = False
    attentive: int = 0
    every: int = 0
    first: int = 0
    score: str = "auto"
    order: str = steps.BY_POSITION
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        for option in ("attentive", "every", "first"):
            steps.at_least(self.name, option, getattr(self, option), 0)
        steps.choice(self.name, "score", self.score, recycling.WEIGHTS)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens, centres = site.tokens - site.protect, site.keep - site.protect - 1
        score = recycling.attention(op, taps, site, self.score)
        weight, ranked = (steps.free(op, row, site) for row in (score, scores.unpadded(op, taps, score)))
        center, twice = self._centres(op, ranked, tokens, centres)
        whole = clusters.whole(op, taps, site, center)
        left = steps.free(op, scores.dropped(op, score, whole, site), site)
        x = rows.sound(op, taps, site, steps.float_tokens(op, taps))
        unit = rows.unit(op, taps, site, recycling.joined_keys(op, taps, site))
        if twice is None:
            pool = None
        else:
            left = _without_first(op, left, twice)
            rest = op("TokenSelect", left, keep=tokens - centres, protect=0, order=0)
            pool = op("Concat", center, rest, axis=1)
        taken = self._taken(op, center, pool, (unit, x, weight), clusters.real(op, taps, site), site)
        changed = op("CastLike", op("Add", steps.gather(op, x, center), taken), taps.tokens)
        last = op("MatMul", op("Unsqueeze", op("Mul", left, weight), MIDDLE), x)
        others = clusters.ahead(op, taps, site, changed)
        made = scores.appended(op, taps, site, score, whole, last, others=others)
        return (
            made if twice is None else replace(made, assign=scores.last_slot(op, whole, site, site.keep - 1))
        )

    def _taken(
        self,
        op: Ops,
        center: Value,
        pool: Value | None,
        data: tuple[Value, Value, Value],
        real: Value | None,
        site: Site,
    ) -> Value:
        """What each centre takes of the tokens nearest to it: [B,M,C].

        data: keys of length one [B,T,HD], tokens [B,T,C] and weights [B,T]. pool [B,T]: the tokens to take from, centres first,
        where some are there twice; else all in their order.
        """
        unit, x, weight = data
        asking, own = steps.gather(op, unit, center), center
        if pool is not None:
            unit, x = (steps.gather(op, rows_, pool) for rows_ in (unit, x))
            weight = op("GatherElements", weight, pool, axis=1)
            own = steps.numbered(op, weight, site.keep - site.protect - 1)
        likeness = op("MatMul", asking, op("Transpose", unit, perm=[0, 2, 1]))
        if real is not None and pool is None:
            likeness = op("Where", real, likeness, steps.LOWEST)
        near = recycling.nearest(op, likeness, own, site.tokens - site.protect)
        return op("MatMul", op("Mul", near, op("Unsqueeze", weight, MIDDLE)), x)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + 2

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + 1

    def _centres(self, op: Ops, ranked: Value, tokens: int, centres: int) -> tuple[Value, Value | None]:
        """The centres [B,M], and how many of them are there twice [B,1] where that can be."""
        by_score = steps.ORDERS[steps.BY_SCORE]
        if not self.plus:
            return self._ordered(
                op, op("TokenSelect", ranked, keep=centres, protect=0, order=by_score), centres
            ), None
        best = min(self.attentive or max(1, centres // 2), centres)
        step = self.every or max(1, tokens // best)
        samples = np.arange(self.first if self.every else step // 2, tokens - 1, step)
        top = op("TokenSelect", ranked, keep=best, protect=0, order=by_score)
        if best == centres:
            return self._ordered(op, top, centres), None
        sampled = np.isin(np.arange(tokens), samples).astype(np.float32)[None]
        left = op(
            "ScatterElements",
            scores.filled(op, ranked, 1.0, tokens),
            top,
            scores.filled(op, ranked, 0.0, best),
            axis=1,
        )
        if self.variant == scores.PAPER:
            lifted = op("Where", op("Greater", left, 0.5), op("Add", ranked, 2 * sampled), TAKEN)
            more = op(
                "TokenSelect", lifted, keep=centres - best, protect=0, order=steps.ORDERS[steps.BY_POSITION]
            )
            return self._ordered(op, op("Concat", top, more, axis=1), centres), None
        if best + len(samples) != centres:
            raise PlanError(
                f"method {self.name!r} with plus and variant=reference: {best} attentive tokens and {len(samples)} samples are "
                f"not {centres} centres; set attentive and every"
            )
        listed = op("Expand", op.constant(samples[None]), steps.batch_shape(op, ranked, len(samples)))
        twice = op("ReduceSum", op("Mul", op("Sub", 1.0, left), sampled), np.array([1]), keepdims=1)
        return self._ordered(op, op("Concat", top, listed, axis=1), centres), twice

    def _ordered(self, op: Ops, center: Value, centres: int) -> Value:
        return center if self.order == steps.BY_SCORE else bipartite.ascending(op, center, centres)


def _without_first(op: Ops, left: Value, count: Value) -> Value:
    """1 for what is left [B,T] but for the first `count` [B,1] of those."""
    late = op("Greater", op("CumSum", left, np.array(1)), count)
    return op("Mul", left, op("Cast", late, to=steps.FLOAT))
