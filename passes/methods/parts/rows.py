"""Tokens as rows of length one, so that a product of two is their cosine."""

from __future__ import annotations

from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps


def sound(op: Ops, taps: Taps, site: Site, tokens: Value) -> Value:
    """The unprotected of tokens [B,N,C] -> [B,T,C], with 0 for what is not finite and for padding."""
    rows = clusters.finite(op, steps.free(op, tokens, site))
    if not taps.padded:
        return rows
    return op("Where", op("Greater", steps.free(op, taps.size, site), 0.0), rows, 0.0)


def unit(op: Ops, taps: Taps, site: Site, tokens: Value) -> Value:
    """The same at length one; a zero row, and padding, stays zero."""
    return op("LpNormalization", sound(op, taps, site, tokens), axis=2, p=2)
