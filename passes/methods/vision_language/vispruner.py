"""VisPruner: half of the tokens by attention, the other half by taking out what repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, scores, steps

AUTHORS, ANGELSLIM = "authors", "angelslim"


@dataclass(frozen=True)
class VisPruner(Method):
    """Keep the T = floor(important K) tokens with the most class attention, and K - T different ones of the rest.

    The rest is listed by falling attention. In rounds, of the tokens at even places the `step` most like one at an odd place
    leave (largest cosine of features); on go the even ones that stay, by falling cosine, then the odd ones, until K - T are
    left. Of an odd count the even half is the larger one, and no round takes more than it, where the release fails. Kept
    tokens ascend. Padding is like padding only, and is not among the important.
    Options: important; step; score: class, received (towers without a class token) or auto; form: authors, or angelslim,
    which lists the rest by position in every round, rounds T, leaves one token or more to the rest and no round takes more
    than floor(half).
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "keep half by class attention, half by removing what repeats, round by round"
    paper: ClassVar[str] = (
        "Zhang et al., Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("VisPruner",)

    important: float = 0.5
    step: int = 8
    score: str = "auto"
    form: str = AUTHORS

    def __post_init__(self) -> None:
        steps.at_least(self.name, "step", self.step, 1)
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "form", self.form, (AUTHORS, ANGELSLIM))
        if not 0 <= self.important <= 1:
            raise MethodError(f"option important={self.important} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        kept = site.keep - site.protect
        best = self._important(kept)
        score = steps.importance(op, taps, site, self.score)
        if best == kept:
            return scores.pruned(op, taps, site, score, steps.BY_POSITION)
        ranked = scores.select(op, taps, site, score, steps.BY_SCORE, site.tokens)
        head = site.protect + best
        rest = steps.cut(op, ranked, head, site.tokens)
        features = scores.apart(op, taps, clusters.finite(op, steps.float_tokens(op, taps)))
        rest = self._different(op, features, rest, site.tokens - head, kept - best)
        index = rest if not head else op("Concat", steps.cut(op, ranked, 0, head), rest, axis=1)
        return steps.pruned(op, taps, site, bipartite.ascending(op, index, site.keep))

    def _important(self, kept: int) -> int:
        if self.form == AUTHORS:
            return int(kept * self.important)
        return min(round(kept * self.important), kept - 1)

    def _different(self, op: Ops, features: Value, rest: Value, count: int, left: int) -> Value:
        """Go from `count` positions [B,count] to `left` of them."""
        resort = self.form == ANGELSLIM
        while count > left:
            even, odd = list(range(0, count, 2)), list(range(1, count, 2))
            leaving = min(self.step, count - left, len(odd) if resort else len(even))
            if resort:
                rest = bipartite.ascending(op, rest, count)
            rows = steps.gather(op, features, rest)
            _, pairs = bipartite.match(op, rows, [], even, odd, leaving, by_value=not resort)
            rest = op("GatherElements", rest, pairs.keep, axis=1)
            count -= leaving
        return rest
