"""Which operators run in half precision, which stay in float32, and which follow what they are given.

The standard lists of mixed precision: products run in half; exponentials, logarithms, roots, powers and sums over an
axis stay in float32; data movement and arithmetic by element follow. An operator in none of the lists stays in float32.
"""

from __future__ import annotations

INSERTED = "tokenrt_"
"""How the names of the nodes a reduction put into the model begin."""

HALF = frozenset(
    """Attention BatchNormalization Conv ConvTranspose Einsum Gemm GroupNormalization InstanceNormalization
    LayerNormalization MatMul RMSNormalization RotaryEmbedding""".split()
)
"""Products, and normalizations that keep their sums in float32 by themselves (stash_type)."""

MOVED = frozenset(
    """Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Pad Reshape ScatterElements
    ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Compress Dropout Upsample""".split()
)
"""Data is moved, never computed: half as soon as one piece of the data is."""

ELEMENTWISE = frozenset(
    """Abs Add And Ceil Celu Clip Div Elu Equal Erf Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN
    LeakyRelu Less LessOrEqual Max Mean Min Mish Mul Neg PRelu Relu Round Selu Sigmoid Sign Softplus Softsign Sub Sum
    Swish Tanh ThresholdedRelu Where AveragePool GlobalAveragePool GlobalMaxPool""".split()
)
"""Half when all data is, float32 as soon as one input is."""

TYPED = frozenset({"Cast", "Shape", "Size", "NonZero", "ArgMax", "ArgMin", "OneHot"})
"""Take what they are given; what they give does not depend on it."""

INDEX_INPUTS = {"Dropout": (1, 2), "Upsample": (1,)}
"""Inputs that are settings and keep their type, where they are floats."""
