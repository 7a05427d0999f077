"""Attention column sum: keep the tokens that receive the most attention at one block of the tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, joining, scores, steps

DOMINANT, MERGE = "dominant", "merge"


@dataclass(frozen=True)
class AttentionColumnSum(Method):
    """Keep the K tokens that receive the most attention, averaged over heads and queries, in ascending position.

    Form merge, in the release's file though no option of its reaches it: K - a such tokens and a anchors, every
    floor(r / a)-th of the r others, a = floor(merge_ratio * N), at least 1 and below K; every other token joins the anchor of
    largest cosine of embeddings, and an anchor becomes itself plus the mean of those that joined. Where K is well below
    merge_ratio * N the form is dominant.
    The published tap is the last block but one (`--tap-layer -2`), which in towers with windows has attention inside
    windows only. Padding leaves first and adds nothing to an anchor.
    Options: form: dominant or merge; merge_ratio.
    """

    name: ClassVar[str] = "attncolsum"
    summary: ClassVar[str] = "keep the tokens that receive the most attention in the tower"
    paper: ClassVar[str] = "visual token pruning by attention column sums, vLLM pull request 38888"
    reads: ClassVar[tuple[str, ...]] = ("received_attention",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Attention column sum",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "--image-pruning-rate, --extract-vit-attention-score"}

    form: str = DOMINANT
    merge_ratio: float = 0.1

    def __post_init__(self) -> None:
        steps.choice(self.name, "form", self.form, (DOMINANT, MERGE))
        steps.at_least(self.name, "merge_ratio", self.merge_ratio, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = taps.received_attention()
        kept = site.keep - self._anchors(site)
        index = scores.select(op, taps, site, score, steps.BY_POSITION, kept)
        if kept == site.keep:
            return steps.pruned(op, taps, site, index)
        features = clusters.finite(op, steps.float_tokens(op, taps))
        return joining.by_position(
            op, taps, site, joining.spread_targets(op, taps, site, index, kept, features)
        )

    def _anchors(self, site: Site) -> int:
        """How many of the kept tokens others join."""
        tokens, kept = site.tokens - site.protect, site.keep - site.protect
        if self.form == DOMINANT or kept + 1 <= self.merge_ratio * tokens:
            return 0
        return min(max(1, int(self.merge_ratio * tokens)), kept - 1)
