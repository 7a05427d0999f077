"""The page of the kernels: made from a compilation and the model of cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType

import pytest

from tokenrt.perf.bench.gpu import costs, kernels
from tokenrt.plugins.host.launches import KERNELS
from tokenrt.plugins.toolchain.device import Usage

ROOT = Path(__file__).parents[3]


def code() -> kernels.Code:
    used = {75: Usage("f", 32, 1048, 0, 0), 89: Usage("f", 128, 1048, 0, 0)}
    return kernels.Code("13.0.88", [kernels.Row("few<float>", 256, MappingProxyType(used))])


def test_the_page_tells_registers_and_occupancy() -> None:
    page = kernels.Report(code()).page({"date": "today", "processor": "x", "processors": 2, "versions": {}})
    assert "| `few<float>` | 256 | 1048 | 32 · 100 | 128 · 33 |" in page
    assert "Model, unmeasured: nothing here ran on a GPU" in page


def test_code_is_kept_where_there_is_no_compiler(tmp_path: Path) -> None:
    told = json.loads((ROOT / "docs" / "kernels.json").read_text())
    (tmp_path / "kernels.json").write_text(json.dumps(told))
    assert kernels.main(["--keep-code", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "kernels.json").read_text())
    assert again["kernels"] == told["kernels"]
    assert again["nvcc"] == told["nvcc"]


def test_the_committed_costs_are_those_of_the_model() -> None:
    """Made anew whenever the model or a launch changes: python -m tokenrt.perf.bench.gpu.kernels --keep-code."""
    told = json.loads((ROOT / "docs" / "kernels.json").read_text())
    assert {key: told[key] for key in ("constants", "models")} == json.loads(json.dumps(costs.as_dict()))


def test_no_kernel_of_the_committed_table_spills() -> None:
    told = json.loads((ROOT / "docs" / "kernels.json").read_text())
    assert {row["operator"] for model in told["models"] for row in model["operators"]} == KERNELS.keys()
    for row in told["kernels"]:
        assert all(
            used["spilled_bytes"] == used["stack_bytes"] == 0 for used in row["architectures"].values()
        )


@pytest.mark.slow
def test_the_committed_table_is_of_the_kernels_there_are() -> None:
    """Made anew before a release, as it takes minutes: python -m tokenrt.perf.bench.gpu.kernels."""
    told = json.loads((ROOT / "docs" / "kernels.json").read_text())
    files = {row["kernel"].split("::")[0] for row in told["kernels"]}
    texts = [path.read_text() for path in (ROOT / "plugins" / "kernels").glob("*.cuh")]
    sources = "".join(text for text in texts if "__global__" in text)
    assert files == set(re.findall(r"^namespace (\w+) \{", sources, re.MULTILINE)) - {"once", "tokenrt"}


def test_bad_input_ends_with_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert kernels.main(["--arch", "ampere", "--out", str(tmp_path)]) == 2
    assert "'ampere' is no architecture" in capsys.readouterr().err
