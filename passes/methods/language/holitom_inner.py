"""HoliTom, the stage inside the language model: tokens that the last word passes over blend into the ones most like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, clusters, joining, scores, steps


@dataclass(frozen=True)
class HoliTomInner(Method):
    """Keep the tokens that the last word attends to most; each other one is averaged into the kept one of largest cosine.

    They come one by one in ascending position, y = (y + x) / 2, so that of m that join a token the last weighs 1/2, the first
    2^-m, as does the token itself; cosines are those before anything was averaged. Here it is one product with these weights.
    Protected tokens take nothing in. Padding leaves first and adds nothing. Published at layer 18, half of the tokens.
    """

    name: ClassVar[str] = "holitom_inner"
    summary: ClassVar[str] = (
        "keep what the last word attends to, average each other token into the one most like it"
    )
    paper: ClassVar[str] = (
        "Shao et al., HoliTom: Holistic Token Merging for Fast Video Large Language Models, NeurIPS 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("last_attention", "tokens")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "prefill"
    joins: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "in a model's prompt what was averaged stands at the place of its last member, where the release leaves it at the kept "
        "token's, so that what stands between learns of later tokens"
    )
    systems: ClassVar[tuple[str, ...]] = ("HoliTom: merging inside the language model",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        keep = scores.select(op, taps, site, scores.numbers(op, taps.last_attention()), steps.BY_POSITION)
        tokens = clusters.finite(op, steps.float_tokens(op, taps))
        pairs = joining.to_nearest(op, taps, site, keep, tokens)
        source, mine = pairs.source, steps.cut(op, keep, site.protect, site.keep)
        nearest = op("Sub", pairs.slot, np.array(site.protect))
        joins = op("Cast", clusters.members(op, nearest, clusters.outputs(site)), to=steps.FLOAT)
        there = scores.present(op, taps)
        if there is not None:
            joins = op("Mul", joins, op("Unsqueeze", scores.gather_row(op, there, source), np.array([1])))
        # How many join the same token at this place or behind it, by a product with a triangle of ones.
        behind = op("MatMul", joins, np.tril(np.ones((site.removed, site.removed), np.float32)))
        weight = op("Mul", joins, op("Pow", 0.5, behind))
        own = op("Pow", 0.5, op("ReduceSum", joins, steps.LAST, keepdims=1))
        kept = steps.gather(op, tokens, mine)
        blended = op("Add", op("Mul", kept, own), op("MatMul", weight, steps.gather(op, tokens, source)))
        return Reduction(
            clusters.ahead(op, taps, site, op("CastLike", blended, taps.tokens)),
            None if taps.size is None else bipartite.total(op, taps.size, pairs),
            keep,
            bipartite.went(op, taps.tokens, pairs, site.keep, site),
        )
