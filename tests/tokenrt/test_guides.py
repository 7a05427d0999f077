"""The guides run as written, up to where a GPU is needed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import hosts, text_encoder
from tests.helpers.documents import GUIDES, HERE, blocks, commands
from tests.passes.helpers import denoisers, prefill
from tests.passes.helpers.projectors import tower
from tests.passes.helpers.streams import seeded
from tests.tokenrt.conftest import Run
from tokenrt.perf.profile import profile

PYTHON = "python"
SHARED = "tokenrt export timm:deit_tiny_patch16_224 -o deit.onnx --random-weights"
TOWER = "tokenrt export hf:llava --part vision -o vision.onnx --random-weights --image-size 336"
PATCHES = "tokenrt export hf:qwen3_vl --part vision -o patches.onnx --random-weights --image-grid 16x16"
SMALLER = {"x4096": "x40", "4x24x24": "4x6x6", "x3x336x336": "x3x24x24", "--layers 8": "--layers 1"}
"""The guide's projector has 4096 channels and its grid 24 x 24 patches, those of the small tower in its place 40 and 6 x 6, and
three blocks."""
FOLDERS = {"onnxruntime_genai": hosts.genai, "transformers_js": hosts.transformers_js}
"""What writes the folder that a guide begins with."""


SHALLOW = """
def shallow():
    import timm

    return timm.create_model("deit_tiny_patch16_224", depth=4)
"""
"""The model of the guides with a third of its blocks."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the export of the guides writes, made once."""
    import tokenrt

    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    folder = tmp_path_factory.mktemp("guides")
    (folder / "models.py").write_text(SHALLOW)
    tokenrt.export(f"{folder / 'models.py'}:shallow", folder / "deit.onnx")
    return folder / "deit.onnx"


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_as_written(
    page: Path, exported: Path, desk: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "REPEATS", 2)
    folder = desk("coffee", "cat")
    if not any(line.startswith("tokenrt export") for line in commands(page)):
        shutil.copy(exported, folder / "model.onnx")
    if page.stem == "diffusion_step":
        denoisers.exported(seeded(denoisers.DiT(192, 32, 2)), folder / "denoiser.onnx")
    if page.stem == "prefill":
        shutil.copy(prefill.exported("llama", "merged", 20), folder / "decoder.onnx")
    if page.stem == "text_retrieval":
        known = text_encoder.tokenizer(folder / "tokenizer.json", [page.read_text()])
        text_encoder.write(folder / "encoder.onnx", known)
    if page.stem in FOLDERS:
        FOLDERS[page.stem](folder / "model", tower("mlp"))
    for language, body in blocks(page, HERE, PYTHON):
        if language == PYTHON:
            exec(compile(body, str(page), "exec"), {})
            continue
        for line in body.replace("\\\n", " ").splitlines():
            if line == SHARED:
                shutil.copy(exported, folder / "deit.onnx")
            elif line == TOWER:
                shutil.copy(tower("mlp"), folder / "vision.onnx")
            elif line == PATCHES:
                shutil.copy(tower("deepstack"), folder / "patches.onnx")
            elif line.startswith("tokenrt "):
                for guides, towers in SMALLER.items():
                    line = line.replace(guides, towers)
                done = run(*shlex.split(line)[1:])
                assert done.exit_code == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert {"reduced.onnx"} <= {path.name for path in folder.iterdir()}


def test_there_are_nine_guides() -> None:
    assert [page.stem for page in GUIDES] == [
        "diffusion_step",
        "h100",
        "jetson",
        "measuring",
        "onnxruntime_genai",
        "prefill",
        "text_retrieval",
        "transformers_js",
        "vision_language",
    ]
    for page in GUIDES:
        assert page.read_text().count("```console") == (page.stem in ("h100", "jetson", "text_retrieval"))
