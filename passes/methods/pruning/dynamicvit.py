"""DynamicViT: a trained predictor scores the tokens; the best stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

EPSILON = 1e-5
"""Of the predictor's layer norm."""


@dataclass(frozen=True)
class DynamicViT(Trained):
    """Keep the K tokens that the predictor most wants to keep, protected ones included, and drop the others.

    The predictor sees the unprotected tokens: layer norm, a linear layer with GELU; half of its channels are
    a token's own, the other half are averaged over all tokens (padding counts for nothing); three linear layers make
    two logits of them. The published score is the log-probability of the first; it falls and rises with the
    difference of the two, which is what is ranked here.
    The paper prunes before blocks 3, 6 and 9: use --site after-block at blocks 2, 5 and 8. Options: order of
    the kept tokens: position, or score (descending, as published).
    """

    name: ClassVar[str] = "dynamicvit"
    summary: ClassVar[str] = "keep the tokens that a trained predictor wants to keep"
    paper: ClassVar[str] = (
        "Rao et al., DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification, NeurIPS 2021"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Which Tokens to Use (10 methods)",)
    drops: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {
        "in_conv.0.weight": "C",
        "in_conv.0.bias": "C",
        "in_conv.1.weight": "C,C",
        "in_conv.1.bias": "C",
        "out_conv.0.weight": "C/2,C",
        "out_conv.0.bias": "C/2",
        "out_conv.2.weight": "C/4,C/2",
        "out_conv.2.bias": "C/4",
        "out_conv.4.weight": "2,C/4",
        "out_conv.4.bias": "2",
    }

    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = scores.behind_protected(op, self._preference(op, taps, site), site)
        return scores.pruned(op, taps, site, score, self.order)

    def _preference(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Logit of keeping minus logit of dropping, [B,T]."""
        w = {name: self.tensor(name, site) for name in self.needs}
        channels = w["in_conv.1.weight"].shape[0]
        letters = {"C": channels, "C/2": channels // 2, "C/4": channels // 4, "2": 2}
        for name, shape in self.needs.items():
            self.check(name, w[name], tuple(letters[part] for part in shape.split(",")))

        tokens = steps.free(op, steps.float_tokens(op, taps), site)
        hidden = layers.layer_norm(op, tokens, w["in_conv.0.weight"], w["in_conv.0.bias"], EPSILON)
        hidden = layers.gelu(op, layers.linear(op, hidden, w["in_conv.1.weight"], w["in_conv.1.bias"]))
        half = channels // 2
        local, shared = steps.cut(op, hidden, 0, half, 2), steps.cut(op, hidden, half, channels, 2)
        # The averaged half is the same for every token, so its part of the layer is computed once.
        first = w["out_conv.0.weight"]
        mean = layers.linear(op, self._mean(op, taps, site, shared), first[:, half:], w["out_conv.0.bias"])
        hidden = layers.gelu(op, op("Add", layers.linear(op, local, first[:, :half], None), mean))
        hidden = layers.gelu(op, layers.linear(op, hidden, w["out_conv.2.weight"], w["out_conv.2.bias"]))
        last, bias = w["out_conv.4.weight"], w["out_conv.4.bias"]
        return op("Squeeze", layers.linear(op, hidden, last[:1] - last[1:], bias[:1] - bias[1:]), steps.LAST)

    def _mean(self, op: Ops, taps: Taps, site: Site, rows: Value) -> Value:
        """Mean over the tokens that are no padding: [B,T,C] -> [B,1,C]."""
        there = scores.present(op, taps)
        if there is None:
            return op(
                "Mul", op("ReduceSum", rows, np.array([1]), keepdims=1), 1 / (site.tokens - site.protect)
            )
        return scores.weighted_mean(op, steps.free(op, there, site), rows)
