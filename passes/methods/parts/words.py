"""The text that comes with a picture, as one row."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Taps, Value, beyond
from tokenrt.passes.methods.parts import clusters, steps

WORD_AXIS = np.array([1])


def mean(op: Ops, taps: Taps, *, unit: bool = False) -> Value:
    """The mean of the text's embeddings, [B,1,E] float32, where asked of length one each; padding does not count."""
    text = clusters.finite(op, op("Cast", taps.text(), to=steps.FLOAT))
    if unit:
        text = op("LpNormalization", text, axis=2, p=2)
    mask = taps.text_mask()
    if mask is None:
        return op("ReduceMean", text, axes=[1], keepdims=1)
    shown = op("Unsqueeze", op("Cast", op("Greater", mask, 0.0), to=steps.FLOAT), steps.LAST)
    total = op("ReduceSum", op("Where", op("Greater", shown, 0.0), text, 0.0), WORD_AXIS, keepdims=1)
    return op("Div", total, op("Max", op("ReduceSum", shown, WORD_AXIS, keepdims=1), 1.0))


def strongest(op: Ops, taps: Taps, count: int, *, by_keys: bool = False) -> Value:
    """The `count` rows of largest L1 norm, theirs or their keys', at length one, by falling norm: [B,count,E]; padding last."""
    text, mask = clusters.finite(op, op("Cast", taps.text(), to=steps.FLOAT)), taps.text_mask()
    if by_keys:
        norm = op("ReduceSum", op("Abs", beyond(taps, "text_keys")), np.array([1, 3]), keepdims=0)
    else:
        norm = op("ReduceSum", op("Abs", text), steps.LAST, keepdims=0)
    if mask is not None:
        norm = op("Where", op("Greater", mask, 0.0), norm, -1.0)
    index = op("TokenSelect", norm, keep=count, protect=0, order=steps.ORDERS[steps.BY_SCORE])
    return op("LpNormalization", steps.gather(op, text, index), axis=2, p=2)
