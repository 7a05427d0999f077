"""A text encoder as retrieval has it, small and seeded: ids and mask of any length to one embedding; and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

WIDTH, HEADS, LAYERS, LONGEST = 32, 2, 3, 64
ADDED = 0.3
"""What a layer adds, of what drawn weights would: so little that texts of the same words stay near each other."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

HEAD = """
<ir_version: 9, opset_import: ["": 18]>
encoder (int64[B,N] input_ids, int64[B,N] attention_mask) => (float[B,{width}] embedding)
    <int64[4] heads = {{0, 0, {heads}, {each}}}, int64[3] rows = {{0, 0, {width}}}, int64[2] key = {{1, 2}},
     int64[1] last = {{2}}, int64[1] tokens = {{1}}, float one = {{1}}, float low = {{-1e9}}, float scale = {{{scale}}},
     float half = {{0.5}},
     float root = {{1.4142135}}, int64 zero = {{0}}, int64 step = {{1}}> {{
    count = Shape <start = 1, end = 2> (input_ids)
    length = Squeeze (count)
    numbers = Range (zero, length, step)
    places = Gather <axis = 0> (positions, numbers)
    looked = Gather <axis = 0> (words, input_ids)
    placed = Add (looked, places)
    x0 = LayerNormalization <axis = -1> (placed, ones, zeros)
    real = Cast <to = 1> (attention_mask)
    hidden = Sub (one, real)
    away = Mul (hidden, low)
    bias = Unsqueeze (away, key)
"""
LAYER = """
    q{n} = MatMul (x{n}, query{n})
    k{n} = MatMul (x{n}, key{n})
    v{n} = MatMul (x{n}, value{n})
    qh{n} = Reshape (q{n}, heads)
    kh{n} = Reshape (k{n}, heads)
    vh{n} = Reshape (v{n}, heads)
    qt{n} = Transpose <perm = [0, 2, 1, 3]> (qh{n})
    kt{n} = Transpose <perm = [0, 2, 3, 1]> (kh{n})
    vt{n} = Transpose <perm = [0, 2, 1, 3]> (vh{n})
    raw{n} = MatMul (qt{n}, kt{n})
    scores{n} = Mul (raw{n}, scale)
    seen{n} = Add (scores{n}, bias)
    weights{n} = Softmax <axis = -1> (seen{n})
    mixed{n} = MatMul (weights{n}, vt{n})
    back{n} = Transpose <perm = [0, 2, 1, 3]> (mixed{n})
    flat{n} = Reshape (back{n}, rows)
    out{n} = MatMul (flat{n}, output{n})
    sum{n} = Add (x{n}, out{n})
    a{n} = LayerNormalization <axis = -1> (sum{n}, ones, zeros)
    up{n} = MatMul (a{n}, wide{n})
    part{n} = Div (up{n}, root)
    erf{n} = Erf (part{n})
    more{n} = Add (erf{n}, one)
    twice{n} = Mul (up{n}, more{n})
    gelu{n} = Mul (twice{n}, half)
    down{n} = MatMul (gelu{n}, narrow{n})
    total{n} = Add (a{n}, down{n})
    x{m} = LayerNormalization <axis = -1> (total{n}, ones, zeros)
"""
END = """
    shown = Unsqueeze (real, last)
    kept = Mul (x{m}, shown)
    summed = ReduceSum <keepdims = 0> (kept, tokens)
    number = ReduceSum <keepdims = 0> (shown, tokens)
    embedding = Div (summed, number)
}}
"""


def write(path: Path, vocabulary: int) -> Path:
    """The encoder of so many words."""
    each = WIDTH // HEADS
    told = {"width": WIDTH, "heads": HEADS, "each": each, "scale": each**-0.5}
    layers = "".join(LAYER.format(n=n, m=n + 1) for n in range(LAYERS))
    text = HEAD.format(**told) + layers + END.format(m=LAYERS)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)

    weights = {
        "words": rng.standard_normal((vocabulary, WIDTH)).astype(np.float32),
        "positions": 0.1 * rng.standard_normal((LONGEST, WIDTH)).astype(np.float32),
        "ones": np.ones(WIDTH, np.float32),
        "zeros": np.zeros(WIDTH, np.float32),
    }
    for n in range(LAYERS):
        weights |= {f"{name}{n}": drawn(WIDTH, WIDTH) for name in ("query", "key", "value")}
        weights |= {f"output{n}": ADDED * drawn(WIDTH, WIDTH), f"wide{n}": drawn(WIDTH, 4 * WIDTH)}
        weights |= {f"narrow{n}": ADDED * drawn(4 * WIDTH, WIDTH)}
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in weights.items())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def tokenizer(path: Path, texts: Iterable[str]) -> int:
    """Write the tokenizer of these texts' words, as `tokenizers` reads it; how many words it knows."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    found = dict.fromkeys(word for text in texts for word in re.findall(r"[a-z]+|[.,?]", text.lower()))
    known = {word: number for number, word in enumerate((*SPECIAL, *found))}
    made = tokenizers.Tokenizer(models.WordPiece(known, unk_token=SPECIAL[1]))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing((SPECIAL[3], 3), (SPECIAL[2], 2))
    made.save(str(path))
    return len(known)
