"""The guides of hosts: what their steps leave in a folder, and the real runtimes on it where they are installed.

onnxruntime-genai brings an ONNX Runtime of its own, so it is looked for in the Python that TOKENRT_GENAI_PYTHON names;
transformers.js in the folder that TOKENRT_NODE_MODULES names.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.helpers import hosts
from tests.helpers.documents import ROOT, blocks
from tests.passes.helpers.projectors import tower
from tests.tokenrt.conftest import Run

GUIDES = ROOT / "docs" / "guides"
KEPT = 4
"""Of 36 tokens, at 11 %."""

SAVES_PYTHON = """
np.savez("seen.npz", ids=ids, pixels=inputs["pixel_values"].as_numpy(), answer=generator.get_sequence(0))
"""
SAVES_JS = """
import { writeFileSync } from "node:fs";
const plain = (tensor) => ({ data: Array.from(tensor.data, Number), dims: tensor.dims });
const seen = { ids: plain(inputs.input_ids), pixels: plain(inputs.pixel_values), answer: plain(answer) };
writeFileSync("seen.json", JSON.stringify(seen));
"""


@pytest.fixture
def folder(desk: Callable[..., Path]) -> Path:
    """The reader's folder, with a picture in it."""
    return desk("coffee")


def follow(page: str, run: Run) -> None:
    """Take the guide's steps: its commands that reduce, and its Python."""
    for language, body in blocks(GUIDES / page, "bash", "python"):
        if language == "python":
            exec(compile(body, page, "exec"), {})
            continue
        for line in (line for line in body.splitlines() if line.startswith("tokenrt reduce")):
            done = run(*shlex.split(line)[1:])
            assert done.exit_code == 0, done.stderr


def same_words(seen: Mapping[str, Any]) -> None:
    """What the host generated is what the kept rows and positions counted anew lead to."""
    opened = onnxruntime.InferenceSession("reduced.onnx", providers=["CPUExecutionProvider"])
    pixels = np.asarray(seen["pixels"], np.float32)
    (rows,) = opened.run(["image_features"], {opened.get_inputs()[0].name: pixels})
    (ids,), answer = seen["ids"], [int(word) for word in np.ravel(seen["answer"])]
    assert (ids == hosts.IMAGE).sum() == KEPT
    assert answer[: len(ids)] == ids.tolist()
    assert answer[len(ids) :] == hosts.greedy(rows[0], ids, 6)


def test_the_number_in_the_folder_is_that_of_the_rows(folder: Path, run: Run) -> None:
    hosts.transformers_js(folder / "model", tower("mlp"))
    follow("transformers_js.md", run)
    told = json.loads((folder / "model" / "processor_config.json").read_text())
    patches = (hosts.PIXELS // told["patch_size"]) ** 2
    opened = onnxruntime.InferenceSession(
        "model/onnx/vision_encoder.onnx", providers=["CPUExecutionProvider"]
    )
    shapes = {each.name: each.shape for each in opened.get_outputs()}
    assert shapes["image_features"][1:] == [patches + told["num_additional_image_tokens"], hosts.WIDTH]


def test_the_folder_names_the_reduced_model(folder: Path, run: Run) -> None:
    hosts.genai(folder / "model", tower("mlp"))
    follow("onnxruntime_genai.md", run)
    vision = json.loads((folder / "model" / "genai_config.json").read_text())["model"]["vision"]
    assert (folder / "model" / vision["filename"]).read_bytes() == (folder / "reduced.onnx").read_bytes()
    assert vision["outputs"] == {"image_features": "image_features"}


@pytest.mark.slow
def test_onnxruntime_genai_runs_the_folder(folder: Path, run: Run) -> None:
    python = os.environ.get("TOKENRT_GENAI_PYTHON", sys.executable)
    if subprocess.run(
        [python, "-c", "import onnxruntime_genai"], capture_output=True, check=False
    ).returncode:
        pytest.skip(f"{python} has no onnxruntime-genai; TOKENRT_GENAI_PYTHON may name one that has")
    hosts.genai(folder / "model", tower("mlp"))
    follow("onnxruntime_genai.md", run)
    ((_, code),) = blocks(GUIDES / "onnxruntime_genai.md", "py")
    (folder / "run.py").write_text(code + SAVES_PYTHON)
    _run([python, "run.py"], {"PYTHONPATH": str(ROOT)})
    with np.load(folder / "seen.npz") as seen:
        same_words(seen)
    config = folder / "model" / "genai_config.json"
    config.write_text(config.read_text().replace("reduced.onnx", "vision.onnx"))
    assert "invalid dimensions for output" in _run([python, "run.py"], {"PYTHONPATH": str(ROOT)}, fails=True)


@pytest.mark.slow
def test_transformers_js_runs_the_folder(folder: Path, run: Run) -> None:
    packages, node = os.environ.get("TOKENRT_NODE_MODULES"), shutil.which("node")
    if node is None or packages is None or not (Path(packages) / "@huggingface" / "transformers").exists():
        pytest.skip("no node, or TOKENRT_NODE_MODULES names no folder with @huggingface/transformers")
    hosts.transformers_js(folder / "model", tower("mlp"))
    follow("transformers_js.md", run)
    ((_, code),) = blocks(GUIDES / "transformers_js.md", "js")
    (folder / "run.mjs").write_text(code + SAVES_JS)
    (folder / "node_modules").symlink_to(packages)
    _run([node, "run.mjs"])
    seen = json.loads((folder / "seen.json").read_text())
    same_words({name: np.array(each["data"]).reshape(each["dims"]) for name, each in seen.items()})
    shutil.copy(tower("mlp"), folder / "model" / "onnx" / "vision_encoder.onnx")
    assert "tokens and features do not match" in _run([node, "run.mjs"], fails=True)


def _run(words: list[str], more: Mapping[str, str] | None = None, fails: bool = False) -> str:
    """What a program writes to standard error; it ends well unless it is to fail."""
    environment = {**os.environ, **(more or {})}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert bool(done.returncode) == fails, f"{done.stdout}\n{done.stderr}"
    return done.stderr
