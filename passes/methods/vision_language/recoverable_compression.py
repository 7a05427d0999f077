"""Recoverable Compression: tokens that attention keeps, tokens that the text recalls, and clusters of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, joining, recycling, rows, scores, steps


@dataclass(frozen=True)
class RecoverableCompression(Method):
    """Keep the tokens with the most class attention a, then those of the others that the text scores highest.

    Of the rest the `centres` tokens with the most attention become x_i + the sum of a_j x_j over the 32 others of the rest of
    largest (cosine of keys + text_weight * text score), and one last token is the sum of a_j x_j over what is left; without
    centres there is none. The text score, the input `importance`, is the cosine of a patch to the text in CLIP's common space,
    divided by the square root of its width. Keys and the class token's query are those of all heads in a row, as for
    prumerge. Order: the kept tokens by position, the centres by falling attention, the last one. Padding has no weight and
    is neither attentive nor recalled.
    Options: recalled (-1: half of those kept whole); centres (-1: a quarter of K); text_weight; score: joined, class, received
    or auto; variant (see deviations).
    """

    name: ClassVar[str] = "recoverable_compression"
    summary: ClassVar[str] = "keep attentive tokens, recall what the text asks for, and cluster the rest"
    paper: ClassVar[str] = (
        "Chen et al., Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information, AAAI 2025"
    )
    reads: ClassVar[tuple[str, ...]] = (
        "queries", "keys", "class_attention", "received_attention", "importance", "tokens",
    )  # fmt: skip
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "the release takes the three counts from the share of outliers (local outlier factor); here they are fixed"
    )
    home: ClassVar[Home] = "features"
    takes: ClassVar[tuple[str, ...]] = ("importance",)
    systems: ClassVar[tuple[str, ...]] = ("Recoverable Compression",)
    deviations: ClassVar[str] = (
        "variant=reference: keys of the rest are looked up by places in the list of the rest, so that they are those of other "
        "tokens, as released; variant=paper: each token has its own"
    )

    recalled: int = -1
    centres: int = -1
    text_weight: float = 50.0
    score: str = "auto"
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.at_least(self.name, "recalled", self.recalled, -1)
        steps.at_least(self.name, "centres", self.centres, -1)
        steps.choice(self.name, "score", self.score, recycling.WEIGHTS)
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        attentive, recalled, centres = self._counts(site.keep - site.protect)
        score = recycling.attention(op, taps, site, self.score)
        ranked = steps.free(op, scores.unpadded(op, taps, score), site)
        text = steps.free(op, scores.unpadded(op, taps, scores.numbers(op, taps.importance())), site)
        kept = self._kept(op, ranked, text, attentive, recalled)
        whole = clusters.whole(op, taps, site, kept)
        if not centres:
            return steps.pruned(op, taps, site, whole)
        number = site.tokens - site.keep + centres + 1
        rest = joining.rest(op, score, whole, site, site.tokens - number)
        rest = op("Sub", rest, np.array(site.protect)) if site.protect else rest
        local = op(
            "TokenSelect", op("GatherElements", ranked, rest, axis=1), keep=centres, protect=0, order=1
        )
        changed, left = self._clustered(op, taps, site, score, text, rest, local, number)
        center = op("GatherElements", rest, local, axis=1)
        center = op("Add", center, np.array(site.protect)) if site.protect else center
        index = op("Concat", whole, center, axis=1)
        others = op(
            "Concat", steps.gather(op, taps.tokens, whole), op("CastLike", changed, taps.tokens), axis=1
        )
        return scores.appended(op, taps, site, score, index, left, others=others)

    def fewest(self, tokens: int, protect: int) -> int:
        return protect + max(self.centres + 2, 1)

    def _counts(self, kept: int) -> tuple[int, int, int]:
        """How many tokens are attentive, recalled and centres. Raises: PlanError where the options ask for more than K."""
        centres = kept // 4 if self.centres < 0 else self.centres
        whole = kept - centres - (centres > 0)
        recalled = whole // 2 if self.recalled < 0 else self.recalled
        if whole - recalled < 1:
            raise PlanError(
                f"method {self.name!r}: {recalled} recalled tokens and {centres} centres leave no attentive one of {kept}"
            )
        return whole - recalled, recalled, centres

    def _kept(self, op: Ops, ranked: Value, text: Value, attentive: int, recalled: int) -> Value:
        """Positions [B,S] among the unprotected, ascending."""
        by_position = steps.ORDERS[steps.BY_POSITION]
        first = op("TokenSelect", ranked, keep=attentive, protect=0, order=by_position)
        if not recalled:
            return first
        others = op("ScatterElements", text, first, scores.filled(op, text, -np.inf, attentive), axis=1)
        second = op("TokenSelect", others, keep=recalled, protect=0, order=by_position)
        return bipartite.ascending(op, op("Concat", first, second, axis=1), attentive + recalled)

    def _clustered(
        self,
        op: Ops,
        taps: Taps,
        site: Site,
        score: Value,
        text: Value,
        rest: Value,
        local: Value,
        number: int,
    ) -> tuple[Value, Value]:
        """The centres with what they take of the rest [B,R,C], and the sum of what is left [B,1,C]."""
        x = steps.gather(op, rows.sound(op, taps, site, steps.float_tokens(op, taps)), rest)
        unit = rows.unit(op, taps, site, recycling.joined_keys(op, taps, site))
        unit = (
            steps.cut(op, unit, 0, number)
            if self.variant == scores.REFERENCE
            else steps.gather(op, unit, rest)
        )
        weight = op("GatherElements", steps.free(op, score, site), rest, axis=1)
        asked = op("Mul", op("GatherElements", text, rest, axis=1), self.text_weight)
        cosine = op("MatMul", steps.gather(op, unit, local), op("Transpose", unit, perm=[0, 2, 1]))
        likeness = op("Add", cosine, op("Unsqueeze", asked, np.array([1])))
        near = recycling.nearest(op, scores.numbers(op, likeness, -steps.LOWEST / 2), local, number)
        row = op("Unsqueeze", weight, np.array([1]))
        changed = op("Add", steps.gather(op, x, local), op("MatMul", op("Mul", near, row), x))
        nothing = op("Mul", op("GatherElements", weight, local, axis=1), 0.0)
        left = op("Unsqueeze", op("ScatterElements", weight, local, nothing, axis=1), np.array([1]))
        return changed, op("MatMul", left, x)
