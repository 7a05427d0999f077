"""A transformer small enough to read: two blocks in ONNX text, so that a test can change any line of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser

TOKENS, WIDTH, HEADS = 6, 4, 2

ATTENTION = """
  b{n}_q = MatMul (b{n}_in, wq)
  b{n}_k = MatMul (b{n}_in, wk)
  b{n}_v = MatMul (b{n}_in, wv)
  b{n}_qs = Reshape (b{n}_q, split)
  b{n}_ks = Reshape (b{n}_k, split)
  b{n}_vs = Reshape (b{n}_v, split)
  b{n}_qh = Transpose <perm = [0, 2, 1, 3]> (b{n}_qs)
  b{n}_kt = Transpose <perm = [0, 2, 3, 1]> (b{n}_ks)
  b{n}_vh = Transpose <perm = [0, 2, 1, 3]> (b{n}_vs)
  b{n}_scores = MatMul (b{n}_qh, b{n}_kt)
  b{n}_weights = Softmax <axis = -1> (b{n}_scores)
  b{n}_mixed = MatMul (b{n}_weights, b{n}_vh)
  b{n}_tokens = Transpose <perm = [0, 2, 1, 3]> (b{n}_mixed)
  b{n}_result = Reshape (b{n}_tokens, join)
"""
FLAT_ATTENTION = """
  b{n}_q = MatMul (b{n}_in, wq)
  b{n}_k = MatMul (b{n}_in, wk)
  b{n}_v = MatMul (b{n}_in, wv)
  b{n}_kt = Transpose <perm = [0, 2, 1]> (b{n}_k)
  b{n}_scores = MatMul (b{n}_q, b{n}_kt)
  b{n}_weights = Softmax <axis = -1> (b{n}_scores)
  b{n}_result = MatMul (b{n}_weights, b{n}_v)
"""
FOLDED_ATTENTION = """
  b{n}_q = MatMul (b{n}_in, wq)
  b{n}_k = MatMul (b{n}_in, wk)
  b{n}_v = MatMul (b{n}_in, wv)
  b{n}_qs = Reshape (b{n}_q, split)
  b{n}_ks = Reshape (b{n}_k, split)
  b{n}_vs = Reshape (b{n}_v, split)
  b{n}_q4 = Transpose <perm = [0, 2, 1, 3]> (b{n}_qs)
  b{n}_k4 = Transpose <perm = [0, 2, 1, 3]> (b{n}_ks)
  b{n}_v4 = Transpose <perm = [0, 2, 1, 3]> (b{n}_vs)
  b{n}_qh = Reshape (b{n}_q4, fold)
  b{n}_kh = Reshape (b{n}_k4, fold)
  b{n}_vh = Reshape (b{n}_v4, fold)
  b{n}_kt = Transpose <perm = [0, 2, 1]> (b{n}_kh)
  b{n}_scores = MatMul (b{n}_qh, b{n}_kt)
  b{n}_weights = Softmax <axis = -1> (b{n}_scores)
  b{n}_mixed = MatMul (b{n}_weights, b{n}_vh)
  b{n}_m4 = Reshape (b{n}_mixed, unfold)
  b{n}_tokens = Transpose <perm = [0, 2, 1, 3]> (b{n}_m4)
  b{n}_result = Reshape (b{n}_tokens, join)
"""
REST = """
  b{n}_attended = Add (b{n}_in, b{n}_result)
  b{n}_up = MatMul (b{n}_attended, w1)
  b{n}_act = Relu (b{n}_up)
  b{n}_down = MatMul (b{n}_act, w2)
  b{n}_out = Add (b{n}_attended, b{n}_down)
"""
CLASS = """
  first = Gather <axis = 1> (b1_out, zero)
  y = MatMul (first, w1)
"""
MEAN = """
  mean = ReduceMean <axes = [1], keepdims = 0> (b1_out)
  y = MatMul (mean, w1)
"""
EVERY = """
  y = MatMul (b1_out, w1)
"""


def text(
    head: str = CLASS,
    *,
    attention: str = ATTENTION,
    rest: str = REST,
    between: str = "",
    output: str = "float[B,8] y",
    inputs: str = "float[B,6,4] x",
    opset: int = 17,
    imports: str = "",
) -> str:
    """The model as text; `between` stands between the blocks and makes b1_in of b0_out where it is given."""
    second = between or "  b1_in = Identity (b0_out)\n"
    blocks = (attention + rest).format(n=0) + second + (attention + rest).format(n=1)
    head_of = f'<ir_version: 9, opset_import: ["": {opset}{imports}]>'
    return f"{head_of}\ntiny ({inputs}) => ({output}) {{\n  b0_in = Identity (x)\n{blocks}{head}}}\n"


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    made = np.random.default_rng(seed)
    shapes = {"wq": (4, 4), "wk": (4, 4), "wv": (4, 4), "w1": (4, 8), "w2": (8, 4)}
    arrays = {name: made.standard_normal(shape, np.float32) / 2 for name, shape in shapes.items()}
    arrays["split"] = np.array([0, TOKENS, HEADS, WIDTH // HEADS])
    arrays["fold"] = np.array([-1, TOKENS, WIDTH // HEADS])
    arrays["unfold"] = np.array([-1, HEADS, TOKENS, WIDTH // HEADS])
    arrays["join"] = np.array([0, TOKENS, WIDTH])
    arrays["zero"] = np.array(0)
    arrays["places"] = made.standard_normal((1, TOKENS, WIDTH), np.float32)
    return arrays


def model(head: str = CLASS, **options: object) -> onnx.ModelProto:
    """The model with seeded weights; those it does not name are left out."""
    made = onnx.parser.parse_model(text(head, **options))  # type: ignore[arg-type]
    used = {name for node in made.graph.node for name in node.input}
    for name, array in weights().items():
        if name in used:
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def picture(batch: int = 2, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, TOKENS, WIDTH), np.float32)}
