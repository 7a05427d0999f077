"""Token Cropr: learned queries score the tokens; those that leave come back before the last block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Returns, Site, Taps, Value
from tokenrt.passes.methods.parts import layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained
from tokenrt.passes.ops.contract import Array


@dataclass(frozen=True)
class Cropr(Trained):
    """Keep the K tokens that the learned queries attend to most, protected ones included.

    The score is the sum over queries and heads of the plain products q . k, with no scale and no softmax: one
    product of each token with the sum of the queries. Keys are the tokens themselves; a release that
    normalises them first (attn_norm) or projects queries or keys (q, k) has those tensors in its file, and
    they are used. What queries and keys add to all tokens alike (the bias of k) decides nothing.
    All tokens that left return before the last block. The paper prunes behind each block: --site after-block.
    Options: order of the kept tokens: position, or score (descending, as published); epsilon of attn_norm.
    """

    name: ClassVar[str] = "cropr"
    summary: ClassVar[str] = (
        "keep the tokens that learned queries attend to; the others skip to the last block"
    )
    paper: ClassVar[str] = "Bergner et al., Token Cropr: Faster ViTs for Quite a Few Tasks, CVPR 2025"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Token Cropr",)
    drops: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {"queries": "M,C"}
    optional: ClassVar[Mapping[str, str]] = {
        "q.weight": "C,C",
        "q.bias": "C",
        "k.weight": "C,C",
        "attn_norm.weight": "C",
        "attn_norm.bias": "C",
    }
    returns: ClassVar[Returns] = "before-last-block"

    order: str = steps.BY_POSITION
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return scores.pruned(op, taps, site, self._score(op, taps, site), self.order)

    def _score(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Sum of all products with the queries, [B,N]."""
        tokens = steps.float_tokens(op, taps)
        scale, shift = (self._given(f"attn_norm.{part}", site) for part in ("weight", "bias"))
        if scale is not None:
            tokens = layers.layer_norm(op, tokens, scale, shift, self.epsilon)
        return op("Squeeze", op("MatMul", tokens, self._direction(site)[:, None]), steps.LAST)

    def _given(self, name: str, site: Site) -> Array | None:
        """A tensor that the release has or lacks."""
        given = {name, f"block{site.block}.{name}"} & self._tensors().keys()
        return self.tensor(name, site) if given else None

    def _direction(self, site: Site) -> Array:
        """The one vector [C] whose product with a token is its score."""
        queries = self.tensor("queries", site)
        asked = queries.astype(np.float64)
        square = (queries.shape[1],) * 2
        project, bias, keys = (self._given(name, site) for name in ("q.weight", "q.bias", "k.weight"))
        for name, matrix in (("q.weight", project), ("k.weight", keys)):
            if matrix is not None:
                self.check(name, matrix, square)
        if project is not None:
            asked = asked @ project.T
        if bias is not None:
            self.check("q.bias", bias, square[:1])
            asked = asked + bias
        total = asked.sum(axis=0)
        return np.asarray(total if keys is None else total @ keys, np.float32)
