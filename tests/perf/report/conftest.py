"""A run of tune on a small model and its report, made once: three pictures, plans of two methods."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenrt
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.profile import profile
from tokenrt.perf.tune import search

SIDE, GRID = 80, 5
SMALL = PlainViT(width=64, heads=2, blocks=4, patch=16, image=SIDE, classes=10)


@dataclass(frozen=True)
class Made:
    """A model, its data, the folder of its run, the page, and the document inside it."""

    model: Path
    data: Path
    run: Path
    page: Path
    document: dict[str, Any]


def quick(patch: pytest.MonkeyPatch) -> None:
    """Few tries and few rounds: what is tested is not how good a plan is, or how sure a time."""
    patch.setattr(search, "TRIES", 2)
    patch.setattr(profile, "REPEATS", 2)
    patch.setattr(profile, "PROFILED", 4)


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number, size in enumerate([(96, 96), (120, 60), (60, 90)]):
        noise = np.random.default_rng(number).integers(60, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"photo {number} <b>.png")
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("report")
    model, data = SMALL.write(base / "model.onnx"), pictures(base / "photos")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        tokenrt.tune(
            model, data=data, output=base / "run", flops=0.75, methods=["tome", "topk"], threads=1, samples=3
        )
        told = tokenrt.report(base / "run", output=base / "report.html")
    return Made(model, data, base / "run", base / "report.html", json.loads(json.dumps(told.as_dict())))
