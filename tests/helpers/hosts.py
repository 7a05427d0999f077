"""Folders of a vision-language model as its hosts read them, small and seeded, around a vision tower of 36 tokens.

The decoder has one attention layer with a cache and a table of positions, so that what a host writes for placeholders, mask and
positions decides which tokens it generates; `greedy` does the same without a host.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH, VOCABULARY, LONGEST = 40, 32, 64
"""Channels of the tower's output and of the decoder, words, and positions."""

IMAGE, END = 31, 1
"""The words that stand for an image token and, never the likeliest, for the end."""

WORDS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "<unk>", "<start_of_image>", "<end_of_image>"]
LLAVA, GEMMA = "<image>", "<image_soft_token>"
"""The words for an image token."""

PIXELS, GREY = 24, [0.5] * 3

EMBEDDING = f"""
<ir_version: 9, opset_import: ["": 18]>
embedding (int64[B,S] input_ids) => (float[B,S,{WIDTH}] inputs_embeds) <float[{VOCABULARY},{WIDTH}] words> {{
    inputs_embeds = Gather <axis = 0> (words, input_ids)
}}
"""
MERGED = f"""
<ir_version: 9, opset_import: ["": 18]>
embedding (int64[B,S] input_ids, float[P,K,{WIDTH}] image_features) => (float[B,S,{WIDTH}] inputs_embeds)
    <float[{VOCABULARY},{WIDTH}] words, int64[1] image = {{{IMAGE}}}, int64[2] rows = {{-1, {WIDTH}}}> {{
    plain = Gather <axis = 0> (words, input_ids)
    places = Equal (input_ids, image)
    found = NonZero (places)
    where = Transpose <perm = [1, 0]> (found)
    flat = Reshape (image_features, rows)
    inputs_embeds = ScatterND (plain, where, flat)
}}
"""
DECODER = f"""
<ir_version: 9, opset_import: ["": 18]>
decoder (float[B,S,{WIDTH}] inputs_embeds, int64[B,T] attention_mask, int64[B,S] position_ids,
         float[B,1,P,{WIDTH}] cached_key, float[B,1,P,{WIDTH}] cached_value)
    => (float[B,S,{VOCABULARY}] logits, float[B,1,T,{WIDTH}] new_key, float[B,1,T,{WIDTH}] new_value)
    <float[{LONGEST},{WIDTH}] positions, float[{WIDTH},{WIDTH}] query, float[{WIDTH},{WIDTH}] key,
     float[{WIDTH},{WIDTH}] value, float[{WIDTH},{VOCABULARY}] head, int64[1] one = {{1}}, int64 zero = {{0}},
     int64 step = {{1}}, float low = {{-1e9}}, float none = {{0}}> {{
    place = Gather <axis = 0> (positions, position_ids)
    x = Add (inputs_embeds, place)
    q = MatMul (x, query)
    k = MatMul (x, key)
    v = MatMul (x, value)
    heads = Unsqueeze (q, one)
    own_key = Unsqueeze (k, one)
    own_value = Unsqueeze (v, one)
    new_key = Concat <axis = 2> (cached_key, own_key)
    new_value = Concat <axis = 2> (cached_value, own_value)
    turned = Transpose <perm = [0, 1, 3, 2]> (new_key)
    scores = MatMul (heads, turned)
    queries = Shape <start = 1, end = 2> (inputs_embeds)
    keys = Shape <start = 1, end = 2> (attention_mask)
    before = Sub (keys, queries)
    last = Squeeze (keys)
    first = Squeeze (before)
    columns = Range (zero, last, step)
    lines = Range (first, last, step)
    column_row = Unsqueeze (lines, one)
    sees = LessOrEqual (columns, column_row)
    bias = Where (sees, none, low)
    seen = Add (scores, bias)
    weights = Softmax <axis = -1> (seen)
    mixed = MatMul (weights, new_value)
    flat = Squeeze (mixed, one)
    out = Add (x, flat)
    logits = MatMul (out, head)
}}
"""
NAMES = {
    "cached_key": "past_key_values.0.key", "cached_value": "past_key_values.0.value",
    "new_key": "present.0.key", "new_value": "present.0.value",
}  # fmt: skip
"""What the text form cannot write."""


def weights() -> dict[str, Array]:
    """The decoder's tensors, seeded; positions are as strong as words."""
    random = np.random.default_rng(0)
    shapes = {
        "words": (VOCABULARY, WIDTH), "positions": (LONGEST, WIDTH), "head": (WIDTH, VOCABULARY),
        **dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH)),
    }  # fmt: skip
    scale = {"query": 0.1, "key": 0.1, "value": 0.3}
    found = {
        name: (random.standard_normal(shape) * scale.get(name, 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    found["head"][:, END] = 0
    return found


def write(text: str, path: Path) -> Path:
    """A model in ONNX text form with the weights that it names."""
    model = onnx.parser.parse_model(text)
    known = weights()
    for value in [*model.graph.value_info]:
        if value.name in known:
            model.graph.initializer.append(numpy_helper.from_array(known[value.name], value.name))
    for node in model.graph.node:
        node.input[:] = [NAMES.get(name, name) for name in node.input]
        node.output[:] = [NAMES.get(name, name) for name in node.output]
    for value in [*model.graph.input, *model.graph.output]:
        value.name = NAMES.get(value.name, value.name)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def greedy(features: Array, ids: Array, count: int) -> list[int]:
    """The `count` words behind a prompt whose image tokens are the rows [K,C], each at its place in the shorter prompt."""
    known, generated = weights(), list[int]()
    embeds = known["words"][ids]
    embeds[ids == IMAGE] = features
    for _ in range(count):
        x = embeds + known["positions"][: len(embeds)]
        scores = x[-1] @ known["query"] @ (x @ known["key"]).T
        shares = np.exp(scores - scores.max())
        mixed = (shares / shares.sum()) @ (x @ known["value"])
        generated.append(int(((x[-1] + mixed) @ known["head"]).argmax()))
        embeds = np.concatenate([embeds, known["words"][generated[-1:]]])
    return generated


def tokenizer(folder: Path, image: str) -> None:
    """A tokenizer of single letters."""
    words = [*WORDS, image]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": at, "content": word, **plain} for at, word in enumerate(words) if len(word) > 1]
    vocabulary = {word: at for at, word in enumerate(words)}
    told = {
        "version": "1.0", "added_tokens": special, "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    _write(folder / "tokenizer.json", told)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def transformers_js(folder: Path, vision: Path) -> None:
    """LLaVA as transformers.js has it: configurations, and three models in onnx/."""
    text = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": WIDTH, "vocab_size": VOCABULARY,
    }  # fmt: skip
    told = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": IMAGE,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": END}
    _write(
        folder / "config.json",
        {**told, **tokens, "text_config": text, "vision_config": {"image_size": PIXELS}},
    )
    _write(folder / "generation_config.json", tokens)
    processor = {"processor_class": "LlavaProcessor", "image_token": LLAVA, "patch_size": 4}
    _write(folder / "processor_config.json", {**processor, "num_additional_image_tokens": 0})
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_resize": True,
            "size": {"shortest_edge": PIXELS}, "resample": 3, "do_center_crop": True,
            "crop_size": {"height": PIXELS, "width": PIXELS}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": GREY, "image_std": GREY,
        },
    )  # fmt: skip
    tokenizer(folder, LLAVA)
    write(EMBEDDING, folder / "onnx" / "embed_tokens.onnx")
    write(DECODER, folder / "onnx" / "decoder_model_merged.onnx")
    (folder / "onnx" / "vision_encoder.onnx").write_bytes(vision.read_bytes())


def genai(folder: Path, vision: Path) -> None:
    """Gemma 3 as onnxruntime-genai has it: genai_config.json, a processor, and three models beside it."""
    decoder = {
        "filename": "model.onnx", "head_size": WIDTH, "hidden_size": WIDTH, "num_attention_heads": 1,
        "num_hidden_layers": 1, "num_key_value_heads": 1,
        "inputs": {
            "inputs_embeds": "inputs_embeds", "attention_mask": "attention_mask", "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    }  # fmt: skip
    image = {"image_features": "image_features"}
    model = {
        "type": "gemma3", "bos_token_id": 0, "eos_token_id": END, "pad_token_id": END, "context_length": LONGEST,
        "vocab_size": VOCABULARY, "decoder": decoder,
        "embedding": {
            "filename": "embedding.onnx", "inputs": {"input_ids": "input_ids", **image},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": {
            "filename": "vision.onnx", "config_filename": "processor_config.json",
            "inputs": {"pixel_values": "pixel_values"}, "outputs": image,
        },
    }  # fmt: skip
    search = {"max_length": LONGEST, "do_sample": False, "past_present_share_buffer": False}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "genai_config.json", {"model": model, "search": search})
    steps = [
        ("DecodeImage", {"color_space": "RGB"}),
        ("Resize", {"width": PIXELS, "height": PIXELS, "interpolation": "CUBIC", "keep_aspect_ratio": 0}),
        ("Rescale", {}), ("Normalize", {"mean": GREY, "std": GREY}), ("Permute3D", {"dims": [2, 0, 1]}),
    ]  # fmt: skip
    transforms = [
        {
            "operation": {
                "name": kind.lower(),
                "domain": "com.microsoft.extensions",
                "type": kind,
                "attrs": options,
            }
        }
        for kind, options in steps
    ]
    _write(
        folder / "processor_config.json",
        {"processor": {"name": "image_processing", "transforms": transforms}},
    )
    tokenizer(folder, GEMMA)
    write(MERGED, folder / "embedding.onnx")
    write(DECODER, folder / "model.onnx")
    (folder / "vision.onnx").write_bytes(vision.read_bytes())


def _write(path: Path, told: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
