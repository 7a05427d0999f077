"""CDPruner: tokens unlike each other and relevant to the question, by a determinantal point process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, layers, rows, scores, steps, words
from tokenrt.passes.methods.parts.weights import Trained

AUTHORS, BLEND, EXP = "authors", "blend", "exp"
PATCH = "patch"
LEAST = 1e-6


@dataclass(frozen=True)
class CDPruner(Trained):
    """Choose tokens one by one, each time the one that adds most to the determinant of the chosen tokens' kernel L.

    L_ij = r_i cos(i,j) r_j with the relevance r to the text, from 0 to 1. Form authors: r is minus the mean cosine of the
    tower's patch features, which are another block's stream, to the text embeddings (both in CLIP's common space, where they
    match inversely). Forms blend and exp, OpenVINO's: r is the cosine of a token to the mean of the text embeddings, of
    the language model, and L = (1 - w) cos + w r cos r, or exp(a r_i) cos exp(a r_j) with a = w / (2 (1 - w)). With split the
    two halves of the tokens are scaled and chosen from apart, K // 2 tokens of the first. Once the rank of L, at most C, is
    used up the first tokens follow. Padding adds nothing.
    Weights, optional, of form authors: CLIP's post_layernorm and visual_projection, which carry patch features into the common
    space; without them the features are compared as they are.
    Options: form; weight w, 0 to 1; split (only blend and exp have it); patch: the block of the patch features (form
    authors); order of the kept tokens: position, or score (as chosen); variant (see deviations).
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "choose tokens one by one that are relevant to the text and unlike each other"
    paper: ClassVar[str] = (
        "Zhang et al., Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "text", "stream")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    layers: ClassVar[tuple[str, ...]] = (PATCH,)
    takes: ClassVar[tuple[str, ...]] = ("text", "text_mask?")
    ascending: ClassVar[bool] = True
    optional: ClassVar[Mapping[str, str]] = {
        "post_layernorm.weight": "V",
        "post_layernorm.bias": "V",
        "visual_projection.weight": "E,V",
    }
    engines: ClassVar[Mapping[str, str]] = {"OpenVINO GenAI": "pruning_ratio, relevance_weight"}
    systems: ClassVar[tuple[str, ...]] = ("CDPruner",)
    deviations: ClassVar[str] = (
        "form authors, variant=reference: relevance is scaled over the whole batch, so that images decide together; "
        "variant=paper: inside each image"
    )

    form: str = BLEND
    weight: float = 0.5
    split: bool = True
    patch: int = -1
    order: str = steps.BY_POSITION
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.choice(self.name, "form", self.form, (AUTHORS, BLEND, EXP))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        if not 0 <= self.weight <= 1:
            raise MethodError(f"option weight={self.weight} of method {self.name!r}: expected 0 to 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens, kept = site.tokens - site.protect, site.keep - site.protect
        features = rows.sound(op, taps, site, steps.float_tokens(op, taps))
        if self.form == AUTHORS:
            relevance = self._inverse(op, taps, site)
        else:
            asked = op("LpNormalization", words.mean(op, taps), axis=2, p=2)
            relevance = _cosine(op, op("LpNormalization", features, axis=2, p=2), asked)
        chosen = []
        for start, end, count in self._parts(tokens, kept):
            part, own = (steps.cut(op, value, start, end) for value in (features, relevance))
            rated, mix, epsilon = self._rated(op, own)
            found = op(
                "TokenDeterminantSelect", part, rated,
                keep=count, protect=0, order=steps.ORDERS[self.order], mix=mix, epsilon=epsilon,
            )  # fmt: skip
            chosen.append(op("Add", found, np.array(start)) if start else found)
        index = bipartite.joined(op, chosen)
        return steps.pruned(op, taps, site, clusters.whole(op, taps, site, index))

    def _parts(self, tokens: int, kept: int) -> list[tuple[int, int, int]]:
        """Stretches of the tokens that are chosen from apart, and how many of each."""
        half, first = tokens // 2, kept // 2
        if self.form == AUTHORS or not self.split or half < first:
            return [(0, tokens, kept)]
        return [(0, half, first)] * (first > 0) + [(half, tokens, kept - first)]

    def _inverse(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Minus the mean cosine of the patch features to the words: [B,T]."""
        patches = taps.layer(PATCH, self.patch).stream()
        if self.weights is not None:
            scale, shift, projection = (self.tensor(name, site) for name in self.optional)
            patches = layers.linear(op, layers.layer_norm(op, patches, scale, shift), projection, None)
        patches, asked = rows.unit(op, taps, site, patches), words.mean(op, taps, unit=True)
        return op("Neg", _cosine(op, patches, asked))

    def _rated(self, op: Ops, relevance: Value) -> tuple[Value, float, float]:
        """Importance a [B,T], mix and epsilon of the operator, whose L_ij is cos (mix + a_i a_j), of the relevance [B,T]."""
        axes = [0, 1] if self.form == AUTHORS and self.variant == scores.REFERENCE else [1]
        low, high = (op(name, relevance, axes=axes, keepdims=1) for name in ("ReduceMin", "ReduceMax"))
        above, span = op("Sub", relevance, low), op("Sub", high, low)
        if self.form == AUTHORS:
            return op("Div", op("Add", above, LEAST), op("Max", span, LEAST)), 0.0, 0.0
        if self.form == BLEND:
            scaled = op("Div", above, op("Add", span, LEAST))
            return op("Mul", scaled, math.sqrt(self.weight)), 1 - self.weight, LEAST
        scaled = op("Div", above, op("Where", op("Less", span, LEAST), 1.0, span))
        if self.weight == 1:
            return scaled, 0.0, LEAST
        # All of L over exp(2 steep), and epsilon with it: the same choices, and nothing too large for float32.
        steep = self.weight / (2 * (1 - self.weight))
        return op("Exp", op("Mul", op("Sub", scaled, 1.0), steep)), 0.0, LEAST * math.exp(-2 * steep)


def _cosine(op: Ops, unit: Value, asked: Value) -> Value:
    """Products of rows [B,T,E] with one row [B,1,E]: [B,T]."""
    return op("ReduceSum", op("Mul", unit, asked), steps.LAST, keepdims=0)
