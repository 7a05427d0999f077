"""PruMerge: the tokens with the most class attention, each with a weighted sum of those nearest to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, recycling, rows, scores, steps

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
        weight = steps.free(op, score, site)
        ranked = steps.free(op, scores.unpadded(op, taps, score), site)
        center, twice = self._centres(op, ranked, tokens, centres)
        whole = clusters.whole(op, taps, site, center)
        left = steps.free(op, scores.dropped(op, score, whole, site), site)
        x = rows.sound(op, taps, site, steps.float_tokens(op, taps))
        unit = rows.unit(op, taps, site, recycling.joined_keys(op, taps, site))
        own, pool, weights = center, unit, op("Unsqueeze", weight, np.array([1]))
        summed = x
        if twice is not None:
            left = self._without_first(op, left, twice)
            listed = op(
                "Concat", center, op("TokenSelect", left, keep=tokens - centres, protect=0, order=0), axis=1
            )
            own = steps.numbered(op, weight, centres)
            pool, summed = (steps.gather(op, data, listed) for data in (unit, x))
            weights = op("Unsqueeze", op("GatherElements", weight, listed, axis=1), np.array([1]))
        likeness = op("MatMul", steps.gather(op, unit, center), op("Transpose", pool, perm=[0, 2, 1]))
        if twice is None:
            likeness = self._shown(op, taps, site, likeness)
        near = recycling.nearest(op, likeness, own, tokens)
        changed = op("Add", steps.gather(op, x, center), op("MatMul", op("Mul", near, weights), summed))
        rest = op("MatMul", op("Unsqueeze", op("Mul", left, weight), np.array([1])), x)
        others = clusters.ahead(op, taps, site, op("CastLike", changed, taps.tokens))
        made = scores.appended(op, taps, site, score, whole, rest, others=others)
        if twice is None:
            return made
        return replace(made, assign=scores.last_slot(op, whole, site, site.keep - 1))

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + 2

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + 1

    def _shown(self, op: Ops, taps: Taps, site: Site, likeness: Value) -> Value:
        """Likeness [B,M,T] with the lowest number there is to padding."""
        real = clusters.real(op, taps, site)
        return likeness if real is None else op("Where", real, likeness, steps.LOWEST)

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

    def _without_first(self, op: Ops, left: Value, count: Value) -> Value:
        """1 for what is left [B,N] but for the first `count` [B,1] of those."""
        late = op("Greater", op("CumSum", left, np.array(1)), count)
        return op("Mul", left, op("Cast", late, to=steps.FLOAT))
