"""Segments: tokens that a map from outside puts together become one, as the parts of a word or of an identifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, beyond
from tokenrt.passes.methods.parts import clusters, scores, steps

MEAN, WEIGHTED = "mean", "weighted"
AT = np.array([1])


@dataclass(frozen=True)
class Segments(Method):
    """Make output s of all tokens whose segment is s, 0 to K - 1, counted from the first unprotected token's output.

    The map `segments` [B,N] comes from the tokenizer: protected tokens keep places of their own, their entries are not read, and
    a token whose segment is outside that range is dropped. combine=mean: the mean, each token counted by its size; an output of
    no token is zero and of size 0, padding. combine=weighted: the sum of importance times token, as of a noun with its
    attributes, 1.1 and 1.2 (token merging for semantic binding).
    An output stands at the last of its tokens, and under a causal mask outputs are put in the order of these places, empty ones
    last, so that none knows of later tokens. A prompt's cache would hold empty outputs as entries: there it is refused.
    Options: combine.
    """

    name: ClassVar[str] = "segments"
    summary: ClassVar[str] = "merge the tokens that a map from the tokenizer puts together"
    paper: ClassVar[str] = (
        "Saad et al., On the Effect of Token Merging on Pre-trained Models for Code, 2025; Feher et al., Retrofitting Large "
        "Language Models with Dynamic Tokenization, ACL 2025; Hu et al., Token Merging for "
        "Training-Free Semantic Binding in Text-to-Image Synthesis, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "segments", "importance")
    evidence: ClassVar[Evidence] = "mathematics"
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("segments", "importance?")
    ascending: ClassVar[bool] = False
    quota: ClassVar[str] = "K outputs, of which those that a text does not fill are padding"
    empties: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = (
        "Token merging for code models",
        "Dynamic tokenization (retrofit): merging by the map",
        "ToMe for semantic binding: the composite token",
    )

    combine: str = MEAN

    def __post_init__(self) -> None:
        steps.choice(self.name, "combine", self.combine, (MEAN, WEIGHTED))

    @property
    def proportional(self) -> bool:
        return False

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        count, free = clusters.outputs(site), site.tokens - site.protect
        own = steps.free(op, beyond(taps, "segments"), site)
        inside = op("And", op("GreaterOrEqual", own, np.array(0)), op("Less", own, np.array(count)))
        there = scores.present(op, taps)
        if there is not None:
            inside = op("And", inside, op("Greater", steps.free(op, there, site), 0.0))
        went = op("Where", inside, own, np.array(-1))
        member = clusters.members(op, went, count)
        belongs = op("Cast", member, to=steps.FLOAT)
        size = steps.free(op, steps.sizes(op, taps, site), site)
        total = op("MatMul", belongs, size)
        rows = clusters.finite(op, clusters.plain(op, taps, site))
        if self.combine == WEIGHTED:
            weight = op("Unsqueeze", steps.free(op, scores.numbers(op, taps.importance()), site), steps.LAST)
            made = op("MatMul", belongs, op("Mul", rows, weight))
        else:
            share = op(
                "Div",
                op("Mul", belongs, op("Transpose", size, perm=[0, 2, 1])),
                op("Max", total, scores.EPSILON),
            )
            made = op("MatMul", share, rows)
        turned = op("Cast", op("Gather", member, np.arange(free - 1, -1, -1), axis=2), to=steps.FLOAT)
        last = op("Sub", np.array(free - 1), op("ArgMax", turned, axis=2, keepdims=0))
        shifted = op("Where", op("Less", went, np.array(0)), np.array(-1 - site.protect), went)
        return Reduction(
            clusters.ahead(op, taps, site, op("CastLike", made, taps.tokens)),
            clusters.after_protected(op, steps.sizes(op, taps, site), total, site),
            clusters.whole(op, taps, site, last),
            clusters.whole(op, taps, site, shifted),
        )
