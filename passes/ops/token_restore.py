"""TokenRestore: give each original position the token it lives in."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.ops.contract import Array, Operator


def reference(tokens: Array, source_map: Array) -> Array:
    """Copy K tokens back to N0 positions; the map has no -1: dropped tokens were appended to `tokens`.

    Shapes: tokens [B,K,C] any type, source_map [B,N0] int64 in 0 .. K-1 -> restored [B,N0,C] in the type of
    `tokens`.
    Source: Bolya and Hoffman, Token Merging for Fast Stable Diffusion, CVPRW 2023 (unmerging by copy).
    """
    return np.take_along_axis(np.asarray(tokens), source_map[:, :, None], axis=1)


BODY = """
    last = Constant <value_ints = [-1]> ()
    rows = Unsqueeze (source_map, last)
    restored = GatherND <batch_dims = 1> (tokens, rows)
"""

OPERATOR = Operator(
    name="TokenRestore",
    inputs=("tokens", "source_map"),
    outputs=("restored",),
    types=("tokens",),
    attributes={},
    body=BODY,
    reference=reference,
)
