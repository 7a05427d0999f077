"""GTP-ViT: tokens that matter little leave, and first pass what they hold to their neighbours on a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import graphs, scores, steps

STATE = "graph"
SPATIAL, SEMANTIC, MIXED = GRAPHS = ("spatial", "semantic", "mixed")
GRAPH, MEAN, NONE = PROPAGATIONS = ("graph", "mean", "none")
WHAT = ("class", "image", "diagonal", "mixed", "sum", "cosine")
SCORES = tuple(f"{what}-{over}" for what in WHAT for over in ("max", "mean"))


@dataclass(frozen=True)
class GTP(Method):
    """Keep the K highest-scoring tokens; x_i += alpha * sum of W_ij x_j over the others j, for the kept i.

    Score, over heads by maximum or mean: class: attention of the class token; image: attention received;
    diagonal: attention to itself; mixed: product of the last two; sum: their sum; cosine: minus the sum of
    the cosines of a token's row with those of all (protected tokens ask in image, and have no row in cosine).
    Graph W of the unprotected tokens, made at the first site: spatial links cells that touch; semantic links i to its
    `neighbours` most similar tokens, at equal similarity to all; mixed links where either does. G_ij / sqrt(d_i d_j)
    with the row sums d of both. State `graph` [B,T,T] hands its kept part on, never normalised anew.
    token_scale: sizes are passed on like tokens; they are no counts of tokens then, and enter attention with
    --proportional-attention. Tokens that are not finite spoil those they are passed to.
    propagation: graph; mean: the mean of the others is appended as the last token; none.
    sparsity below 1: the score reads attention of which only that share of the entries is left, the largest of each head;
    the model's own attention stays whole.
    Options: score, graph, neighbours, alpha, propagation, token_scale, sparsity, variant; order of the kept
    tokens: position, or score (descending, as published).
    """

    name: ClassVar[str] = "gtp"
    summary: ClassVar[str] = (
        "tokens that matter little pass what they hold to neighbours on a graph and leave"
    )
    paper: ClassVar[str] = (
        "Xu et al., GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation, WACV 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "attention", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("GTP-ViT",)
    drops: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "paper: semantic graphs link each token to `neighbours` others; reference: to one more without a class token"
    )

    score: str = "mixed-max"
    graph: str = MIXED
    neighbours: int = 8
    alpha: float = 0.1
    propagation: str = GRAPH
    token_scale: bool = True
    sparsity: float = 1.0
    variant: str = scores.PAPER
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        choices: Mapping[str, tuple[str, ...]] = {
            "score": SCORES,
            "graph": GRAPHS,
            "propagation": PROPAGATIONS,
            "variant": scores.VARIANTS,
            "order": tuple(steps.ORDERS),
        }
        for option, allowed in choices.items():
            steps.choice(self.name, option, getattr(self, option), allowed)
        if self.neighbours < 1 or not 0 < self.sparsity <= 1:
            raise MethodError(
                f"options neighbours={self.neighbours}, sparsity={self.sparsity} of method {self.name!r}: expected 1 "
                "or more neighbours, and a share above 0, up to 1"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = self._score(op, taps, site)
        if self.propagation == MEAN:
            return self._with_mean(op, taps, site, score)
        index = scores.select(op, taps, site, score, self.order)
        if self.propagation == NONE:
            return steps.pruned(op, taps, site, index)
        return self._propagated(op, taps, site, score, index)

    def fewest(self, tokens: int, protect: int) -> int:
        return self.after_keeping(1, protect)

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + int(self.propagation == MEAN)

    def _score(self, op: Ops, taps: Taps, site: Site) -> Value:
        """[B,N]."""
        what, over = self.score.split("-")
        if what == "class" and not site.class_token:
            raise MethodError(
                f"score={self.score} needs a class token, and this model has none; use score=mixed-max"
            )
        attention = taps.attention()
        there = scores.present(op, taps)
        if there is not None:
            attention = op("Mul", attention, op("Unsqueeze", there, np.array([1, 3])))
        if self.sparsity < 1:
            attention = graphs.sparsified(op, attention, self.sparsity, site.tokens)
        heads = {"max": "ReduceMax", "mean": "ReduceMean"}[over]

        def merged(by_head: Value) -> Value:
            return op(heads, by_head, axes=[1], keepdims=0)

        if what == "class":
            return op("Squeeze", merged(steps.cut(op, attention, 0, 1, 2)), np.array([1]))
        if what == "cosine":
            return self._unlike(op, merged(attention), site)
        received = merged(op("ReduceSum", attention, np.array([2]), keepdims=0))
        if what == "image":
            return received
        own = merged(
            op("ReduceSum", op("Mul", attention, scores.diagonal(site.tokens)), steps.LAST, keepdims=0)
        )
        if what == "diagonal":
            return own
        return op("Mul" if what == "mixed" else "Add", own, received)

    def _unlike(self, op: Ops, rows: Value, site: Site) -> Value:
        """Minus the sum of the cosines of each row [B,N,N] with those of all unprotected tokens."""
        length = op("Sqrt", op("ReduceSum", op("Mul", rows, rows), steps.LAST, keepdims=1))
        unit = op("Div", rows, op("Max", length, 1e-12))
        total = op("ReduceSum", steps.free(op, unit, site), np.array([1]), keepdims=1)
        return op("Neg", op("ReduceSum", op("Mul", unit, total), steps.LAST, keepdims=0))

    def _with_mean(self, op: Ops, taps: Taps, site: Site, score: Value) -> Reduction:
        index = scores.select(op, taps, site, score, self.order, site.keep - 1)
        gone = scores.dropped(op, score, index, site)
        there = scores.present(op, taps)
        weight = gone if there is None else op("Mul", gone, there)
        token = scores.weighted_mean(op, weight, steps.float_tokens(op, taps))
        return scores.appended(op, taps, site, score, index, token)

    def _propagated(self, op: Ops, taps: Taps, site: Site, score: Value, index: Value) -> Reduction:
        first = site.protect
        graph = taps.state[STATE] if STATE in taps.state else self._graph(op, taps, site)
        gone = op(
            "TokenSelect", scores.dropped(op, score, index, site), keep=site.removed, protect=0, order=0
        )
        kept_free, gone_free = (
            op("Sub", item, np.array(first)) for item in (steps.cut(op, index, first, site.keep), gone)
        )
        columns = op("Transpose", steps.gather(op, graph, kept_free), perm=[0, 2, 1])
        message = op("Mul", op("Transpose", steps.gather(op, columns, gone_free), perm=[0, 2, 1]), self.alpha)
        handed = {STATE: op("Transpose", steps.gather(op, columns, kept_free), perm=[0, 2, 1])}

        kept = steps.pruned(op, taps, site, index)
        tokens = self._passed(op, kept.tokens, taps.tokens, gone, message, site)
        size = kept.size
        if self.token_scale:
            sizes = steps.sizes(op, taps, site)
            size = self._passed(op, steps.gather(op, sizes, index), sizes, gone, message, site)
        return Reduction(tokens, size, index, kept.assign, state=handed)

    def _passed(self, op: Ops, kept: Value, rows: Value, gone: Value, message: Value, site: Site) -> Value:
        """Kept rows [B,K,C], the unprotected ones with what `rows` [B,N,C] at `gone` pass to them."""
        parts = [steps.cut(op, kept, 0, site.protect)] if site.protect else []
        own = op("Cast", steps.cut(op, kept, site.protect, site.keep), to=steps.FLOAT)
        passed = op("MatMul", message, op("Cast", steps.gather(op, rows, gone), to=steps.FLOAT))
        return op("Concat", *parts, op("CastLike", op("Add", own, passed), kept), axis=1)

    def _graph(self, op: Ops, taps: Taps, site: Site) -> Value:
        """W [B,T,T]."""
        count = site.tokens - site.protect
        shape = steps.batch_shape(op, taps.tokens, count, count)
        spatial = None
        if self.graph != SEMANTIC:
            spatial = op("Expand", op.constant(graphs.grid_neighbours(self, site)[None]), shape)
        if self.graph == SPATIAL:
            return graphs.normalised(op, spatial)
        extra = int(self.variant == scores.REFERENCE and not site.protect)
        rows = steps.free(op, steps.float_tokens(op, taps), site)
        links = graphs.nearest_neighbours(op, rows, self.neighbours + extra, count)
        if spatial is not None:
            links = op("Max", links, spatial)
        there = scores.present(op, taps)
        if there is not None:
            column = op("Unsqueeze", steps.free(op, there, site), steps.LAST)
            links = op("Mul", op("Mul", links, column), op("Transpose", column, perm=[0, 2, 1]))
        return graphs.normalised(op, links)
