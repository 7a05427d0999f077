"""Small models to export: Hugging Face folders, a Python file, and a torchvision transformer of test size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenrt.export.quiet import quiet

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8}
WORDS = {"vocab_size": 60, "max_position_embeddings": 40, "bos_token_id": None, "eos_token_id": None}

FILE = """
import torch
from torch import nn


class Add(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, a, b, scale=None):
        return {"sum": self.linear(a) + b, "pair": (a, b), "none": None}


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Numbers(nn.Module):
    def forward(self, x):
        return 3


class Antialias(nn.Module):
    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)


class FixedRows(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3)


def positional():
    return Add(), (torch.randn(1, 4), torch.randn(1, 4))


def mapping():
    return Add(), {"b": torch.randn(3, 4), "a": torch.randn(3, 4)}


def table():
    return Add(), (torch.randn(2, 4), torch.randn(4))


def alone():
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(2))


def no_inputs():
    return Add()


def noise():
    return Noise(), torch.randn(2, 3)


def branch():
    return Branch(), torch.randn(2, 3)


def numbers():
    return Numbers(), torch.randn(2, 3)


def antialias():
    return Antialias(), torch.randn(1, 3, 8, 8)


def fixed_rows():
    return FixedRows(), torch.randn(2, 3)


def not_a_module():
    return 3


def bad_inputs():
    return Add(), (torch.randn(2, 4), "text")


def fails():
    raise ValueError("no luck today.")
"""


def _hugging_face(name: str) -> Any:
    import transformers as hf

    made: dict[str, Callable[[], Any]] = {
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SHAPE, **PICTURE)),
        "encoder": lambda: hf.ViTModel(hf.ViTConfig(**SHAPE, **PICTURE), add_pooling_layer=False),
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, **WORDS)),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(text_config={**SHAPE, **WORDS}, vision_config={**SHAPE, **PICTURE})
        ),
        "t5": lambda: hf.T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, vocab_size=60),
        "wav2vec2": lambda: hf.Wav2Vec2Config(**SHAPE),
    }
    return made[name]()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small Hugging Face model, saved on first use."""
    root = tmp_path_factory.mktemp("hugging_face")

    def saved(name: str) -> Path:
        path = root / name
        if not path.exists():
            with quiet():
                _hugging_face(name).save_pretrained(path)
        return path

    return saved


@pytest.fixture(scope="session")
def python_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("python") / "models.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def vit_small() -> Iterator[str]:
    """The name of a torchvision transformer of test size, registered for the test."""
    from torchvision.models import _api
    from torchvision.models.vision_transformer import VisionTransformer

    def vit_small_8(*, weights: object = None, image_size: int = 224) -> VisionTransformer:
        return VisionTransformer(image_size, 8, 2, 2, 32, 64, num_classes=5)

    _api.register_model()(vit_small_8)
    yield "vit_small_8"
    _api.BUILTIN_MODELS.pop("vit_small_8")
