"""Video Token Merging: a trained score finds the salient tokens of a clip, and the others join them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, clusters, joining, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class VideoTokenMerging(Trained):
    """Keep the K tokens of highest saliency, linear, GELU, linear of the token; each other joins the one of largest cosine.

    What joins is averaged plainly with the token itself. Published as learned merging, where targets are drawn by saliency in
    training; the best are taken afterwards. Ours, where nothing is published: the layers of the score. Protected tokens take
    nothing in. Kept tokens ascend; padding leaves first and adds nothing. Where attention is divided the score of a place, or of
    a frame, is the mean of its tokens' scores.
    Options: weights: gate.0 [M,C] and gate.2 [1,M], with biases.
    """

    name: ClassVar[str] = "vtm"
    summary: ClassVar[str] = "merge the tokens of a clip into the salient ones, by a trained score"
    paper: ClassVar[str] = "Lee et al., Video Token Merging for Long-form Video Understanding, NeurIPS 2024"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = scores.GATE
    systems: ClassVar[tuple[str, ...]] = ("Video Token Merging",)

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens = clusters.finite(op, steps.float_tokens(op, taps))
        score = scores.gate(op, self, site, tokens)
        index = scores.select(op, taps, site, score, steps.BY_POSITION)
        pairs = joining.to_nearest(op, taps, site, index, tokens)
        return bipartite.merged(op, taps, site, pairs, bipartite.counted_once(op, taps, site))
