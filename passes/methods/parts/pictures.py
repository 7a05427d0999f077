"""What the pixels under a token say."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Value
from tokenrt.passes.methods.parts import scores, steps

SHADES = 256
WEIGHT = 0.3333
"""Of each colour in a grey value."""

LEAST_SHARE = 1e-10


def entropy(op: Ops, pixels: Value, rows: int, columns: int, mean: float, deviation: float) -> Value:
    """Entropy in bits of the grey values under each cell of a grid, of 256 shades: pixels [B,3,h,w] -> [B,rows*columns].

    mean, deviation: pixel * deviation + mean is a colour from 0 to 1. A colour is cut to 8 bits, and grey is rounded half to
    even. h and w are multiples of rows and columns.
    """
    colour = op("Mul", op("Add", op("Mul", pixels, deviation), mean), float(SHADES - 1))
    whole = op("Cast", op("Cast", colour, to=scores.INT64), to=steps.FLOAT)
    grey = op("Round", op("Mul", op("ReduceSum", whole, np.array([1]), keepdims=0), WEIGHT))
    shape = op("Shape", grey)
    high, wide = (op("Slice", shape, np.array([axis]), np.array([axis + 1])) for axis in (1, 2))
    cells = [np.array([-1, rows]), op("Div", high, np.array([rows])), np.array([columns])]
    split = op("Reshape", grey, op("Concat", *cells, op("Div", wide, np.array([columns])), axis=0))
    patches = op("Transpose", split, perm=[0, 1, 3, 2, 4])
    flat = op("Reshape", patches, np.array([0, rows * columns, -1, 1]))
    shade = op("Cast", op("Equal", flat, np.arange(SHADES, dtype=np.float32)), to=steps.FLOAT)
    share = op("ReduceMean", shade, axes=[2], keepdims=0)
    bits = op("Mul", op("Log", op("Add", share, LEAST_SHARE)), 1 / np.log(2))
    return op("Neg", op("ReduceSum", op("Mul", share, bits), steps.LAST, keepdims=0))
