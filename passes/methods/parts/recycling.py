"""Steps of methods that give what leaves to the tokens that stay: weighted sums of the nearest, one token for the rest."""

from __future__ import annotations

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

AS_ONE = "joined"
WEIGHTS = ("auto", AS_ONE, "class", "received")
NEIGHBOURS = 32


def attention(op: Ops, taps: Taps, site: Site, how: str) -> Value:
    """The weight [B,N] of each token: the class token's attention with all heads as one, the mean over heads, or received.

    auto is the first where the class token is among the protected tokens, else what steps.importance takes it for. 0 for padding.
    """
    among = site.class_token and site.protect > 0
    if how == AS_ONE and not among:
        raise MethodError(
            "score=joined needs the class token's own query: its token must be the first, and protected"
        )
    if how == AS_ONE or (how == "auto" and among):
        score = _as_one(op, taps, site)
    else:
        score = steps.importance(op, taps, site, how)
    score, there = scores.numbers(op, score), scores.present(op, taps)
    return score if there is None else op("Mul", score, there)


def joined_keys(op: Ops, taps: Taps, site: Site) -> Value:
    """Keys of all heads in a row: [B,N,HD]."""
    return _joined(op, taps.keys(), site)


def _joined(op: Ops, heads: Value, site: Site) -> Value:
    turned = op("Transpose", heads, perm=[0, 2, 1, 3])
    return op("Reshape", turned, np.array([0, 0, site.heads * site.width]))


def _as_one(op: Ops, taps: Taps, site: Site) -> Value:
    """softmax(q k' / sqrt(HD)) of the class token, all heads one: [B,N]."""
    query = _joined(op, steps.cut(op, taps.queries(), 0, 1, axis=2), site)
    product = op("MatMul", query, op("Transpose", joined_keys(op, taps, site), perm=[0, 2, 1]))
    logits = op("Squeeze", op("Mul", product, float((site.heads * site.width) ** -0.5)), np.array([1]))
    return op("Softmax", scores.unpadded(op, taps, scores.numbers(op, logits)), axis=-1)


def nearest(op: Ops, likeness: Value, own: Value, tokens: int, count: int = NEIGHBOURS) -> Value:
    """Which `count` of T tokens each of M is most like, itself aside: likeness [B,M,T], own [B,M] -> [B,M,T] float32."""
    itself = op("Equal", op("Unsqueeze", own, np.array([2])), np.arange(tokens)[None, None])
    other = op("Where", itself, steps.LOWEST, likeness)
    best, index = op("TopK", other, np.array([min(count, tokens - 1)]), axis=2, largest=1)
    none = op("Mul", op("Cast", itself, to=steps.FLOAT), 0.0)
    return op("ScatterElements", none, index, op("Add", op("Mul", best, 0.0), 1.0), axis=2)
