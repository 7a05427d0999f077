"""Steps of methods inside a language model: which words judge the tokens of a picture, and what those words attend to."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, scores, steps

RATERS = "raters"


def raters(op: Ops, taps: Taps, site: Site) -> Value:
    """1 for the words that resemble the tokens more than words do on average, else 0: [B,T]; as the site before found them."""
    if RATERS in taps.state:
        return taps.state[RATERS]
    entered = taps.layer("input", 0)
    rows = clusters.finite(op, steps.free(op, entered.stream(), site))
    words = clusters.finite(op, op("Cast", entered.text(), to=steps.FLOAT))
    logits, mask = op("MatMul", rows, op("Transpose", words, perm=[0, 2, 1])), taps.text_mask()
    if mask is not None:
        logits = op("Where", op("Greater", op("Unsqueeze", mask, np.array([1])), 0.0), logits, steps.LOWEST)
    share = op("Softmax", logits, axis=2)
    there = scores.present(op, taps)
    weight = (
        scores.filled(op, rows, 1.0, site.tokens - site.protect)
        if there is None
        else steps.free(op, there, site)
    )
    mine = op("Squeeze", scores.weighted_mean(op, weight, share), np.array([1]))
    if mask is None:
        mean = op("ReduceMean", mine, axes=[1], keepdims=1)
    else:
        words_in_all = op(
            "Max",
            op("ReduceSum", op("Cast", op("Greater", mask, 0.0), to=steps.FLOAT), steps.LAST, keepdims=1),
            1.0,
        )
        mean = op("Div", op("ReduceSum", mine, steps.LAST, keepdims=1), words_in_all)
    return op("Cast", op("Greater", mine, mean), to=steps.FLOAT)


def of_words(op: Ops, attention: Value, how: str) -> Value:
    """Attention [B,H,T,N] averaged over heads, and the `how` of the words, ReduceSum or ReduceMax: [B,N]."""
    mean = op("ReduceMean", attention, axes=[1], keepdims=0)
    if how == "ReduceSum":
        return op("ReduceSum", mean, np.array([1]), keepdims=0)
    return op(how, mean, axes=[1], keepdims=0)
