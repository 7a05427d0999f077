"""CATP, the stage inside the language model: tokens whose attention grows, then those like what is left of the examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, scores, steps, words

EXAMPLES, QUESTION = "examples", "question"


@dataclass(frozen=True)
class CatpInner(Method):
    """of=examples: how much more the last word attends to a token than a layer before, where more, plus weight times a cosine.

    The cosine is that of the token and the mean of the words of the question. Published at layer 6, for the tokens of all
    example pictures together. of=question, a layer later, for the picture of the question: the cosine alone, with the mean of
    what is left of the examples, which then are what `text` gives. Padding leaves first.
    Options: of; weight of the cosine.
    """

    name: ClassVar[str] = "catp_inner"
    summary: ClassVar[str] = "keep the tokens whose attention grows and that resemble the question"
    paper: ClassVar[str] = (
        "Li et al., CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning, "
        "arXiv 2508.07871"
    )
    reads: ClassVar[tuple[str, ...]] = ("last_attention", "tokens", "text")
    evidence: ClassVar[Evidence] = "independent implementation"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    layers: ClassVar[tuple[str, ...]] = ("before",)
    systems: ClassVar[tuple[str, ...]] = ("CATP: the second stage",)

    of: str = EXAMPLES
    weight: float = 0.6

    def __post_init__(self) -> None:
        steps.choice(self.name, "of", self.of, (EXAMPLES, QUESTION))
        steps.at_least(self.name, "weight", self.weight, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = _likeness(op, taps)
        if self.of == EXAMPLES:
            now, then = (
                scores.numbers(op, each.last_attention())
                for each in (taps, taps.layer("before", site.block - 1))
            )
            score = op("Add", op("Max", op("Sub", now, then), 0.0), op("Mul", score, self.weight))
        return scores.pruned(op, taps, site, score, steps.BY_POSITION)


def _likeness(op: Ops, taps: Taps) -> Value:
    """The cosine of each token and the mean of the words: [B,N]."""
    rows = op("LpNormalization", clusters.finite(op, steps.float_tokens(op, taps)), axis=2, p=2)
    mean = op("LpNormalization", words.mean(op, taps), axis=2, p=2)
    return op("Squeeze", op("MatMul", rows, op("Transpose", mean, perm=[0, 2, 1])), np.array([2]))
