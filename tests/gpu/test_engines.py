"""Engines of TensorRT with plugins against those of the function form, and the quick deployable plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tokenrt
from tests.gpu.helpers import engines, needs

pytestmark = [needs.gpu, needs.tensorrt]


def pictures(batch: int) -> dict[str, np.ndarray]:
    made = np.random.default_rng(0).standard_normal((batch, 3, engines.FORM.image, engines.FORM.image))
    return {"pixel_values": made.astype(np.float32)}


def alike(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, exact in wanted.items():
        cosine = np.sum(found[name] * exact) / (np.linalg.norm(found[name]) * np.linalg.norm(exact))
        assert cosine > 0.9999, name


@pytest.mark.parametrize("method", ["tome", "evit", "divprune"])
@pytest.mark.parametrize("batch", [1, 8])
def test_plugins_give_what_functions_give(tmp_path: Path, method: str, batch: int) -> None:
    from tokenrt.plugins.library import load

    model, feeds = engines.reduced(tmp_path, method, 16), pictures(batch)
    tokenrt.lower(model, inline=True, output=tmp_path / "inline.onnx")
    tokenrt.lower(model, plugin=True, output=tmp_path / "bare.onnx")
    wanted = engines.run(tmp_path / "inline.onnx", feeds)
    load(engines.library())
    alike(engines.run(tmp_path / "bare.onnx", feeds), wanted)


QUICK = """
import sys, numpy as np, tensorrt
from pathlib import Path
from tests.gpu.helpers import engines
from tests.gpu.test_engines import pictures
from tokenrt.plugins import quick
quick.register(arch=int(sys.argv[3]))
flag = tensorrt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS
np.savez(sys.argv[2], **engines.run(Path(sys.argv[1]), pictures(2), (flag,)))
"""


@pytest.mark.parametrize("arch", [75, needs.CAPABILITY or 75], ids=["oldest", "own"])
def test_quick_deployable_plugins_give_what_functions_give(tmp_path: Path, arch: int) -> None:
    """In a process of their own: TensorRT takes one plugin of a name."""
    model = engines.reduced(tmp_path, "tome", 16)
    tokenrt.lower(model, inline=True, output=tmp_path / "inline.onnx")
    tokenrt.lower(model, plugin=True, output=tmp_path / "bare.onnx")
    command = [
        sys.executable,
        "-c",
        QUICK,
        str(tmp_path / "bare.onnx"),
        str(tmp_path / "found.npz"),
        str(arch),
    ]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    with np.load(tmp_path / "found.npz") as found:
        alike(dict(found), engines.run(tmp_path / "inline.onnx", pictures(2)))
