"""The table of the kernels: its models of work, and the page that is made from a compilation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType

import pytest

from tokenrt.errors import TargetError
from tokenrt.perf.bench.gpu import kernels, operator_work, roofline
from tokenrt.plugins.host.launches import KERNELS
from tokenrt.plugins.toolchain.device import Usage

ROOT = Path(__file__).parents[3]
DEVICE = roofline.Device("one", bandwidth=1e9, operations=1e12)


def report() -> kernels.Report:
    used = {75: Usage("f", 32, 1048, 0, 0), 89: Usage("f", 128, 1048, 0, 0)}
    return kernels.Report("13.0.88", [kernels.Row("few<float>", 256, MappingProxyType(used))])


def test_each_operator_moves_no_less_than_its_inputs_and_outputs() -> None:
    assert operator_work.WORKS.keys() == KERNELS.keys()
    for work in (*operator_work.works(1), *operator_work.works(32)):
        assert work.moved >= work.least > 0, work
        assert work.launches
        for name in roofline.DEVICES:
            assert work.seconds(roofline.device(name)) >= work.least / roofline.device(name).bandwidth * 0.999
    one, many = operator_work.works(1), operator_work.works(32)
    for single, batch in zip(one, many, strict=True):
        # Lists that all images share are read once.
        assert 25 * single.moved < batch.moved <= 32 * single.moved


def test_the_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    launches = (roofline.Launch("a", 500, 500), roofline.Launch("b", 1, 0, 3e6))
    work = roofline.Work("X", "", 500, 500, launches)
    assert work.seconds(DEVICE) == pytest.approx(1e-6 + 3e-6)
    assert work.bound(DEVICE) == "arithmetic"
    assert roofline.Work("X", "", 500, 500, launches[:1]).bound(DEVICE) == "memory"


def test_a_device_without_figures_is_refused() -> None:
    with pytest.raises(TargetError, match=r"dgx-spark does not state bandwidth_gb_s and vector_tflops\.fp32"):
        roofline.device("dgx-spark")


def test_matching_counts_by_hand() -> None:
    work = operator_work.match(1, operator_work.VIT_B)
    assert work.setting == "98 x 98, 16 leave"
    assert work.least == 197 * 64 * 2 + 4 * 197 + 4 * 98 + 8 * 181 + 16 * 16
    assert work.operations == 2 * (98 * 98 + 197) * 64


def test_rounds_count_by_hand() -> None:
    """196 points of 768 channels in fp32, 138 centres, three rounds."""
    metric, center, assign = 196 * 768 * 4, 138 * 768 * 4, 196 * 8
    means = operator_work.means(1, operator_work.VIT_B)
    assert means.setting == "138 of 196, 3 rounds"
    assert means.least == metric + 196 * 4 + 138 * 8 + center + assign
    a_round = 2 * metric + 3 * center + 2 * assign + 2 * 196 * 8 + 196 * 4
    assert means.moved == 138 * 8 + 2 * center + 3 * a_round
    assert means.operations == 3 * 3 * 196 * 768 * (138 + 1)
    medoids = operator_work.medoids(1, operator_work.VIT_B)
    assert medoids.least == metric + 196 * 4 + 2 * 138 * 8 + assign
    a_round = 2 * metric + 2 * assign + 2 * 138 * 8 + 3 * 196 * 8 + 3 * 196 * 4
    assert medoids.moved == 2 * 138 * 8 + 3 * a_round + metric + 138 * 8 + assign
    assert medoids.operations == 3 * 196 * 768 * (4 * 138 + 3 * 32)


def test_the_page_tells_registers_and_occupancy() -> None:
    page = report().page({"date": "today", "processor": "x", "processors": 2, "versions": {}})
    assert "| `few<float>` | 256 | 1048 | 32 · 100 | 128 · 33 |" in page
    assert "not a measurement" in page


def test_the_committed_table_is_of_the_kernels_there_are() -> None:
    """Made anew whenever a kernel or an operator comes or goes: python -m tokenrt.perf.bench.gpu.kernels."""
    told = json.loads((ROOT / "docs" / "kernels.json").read_text())
    files = {row["kernel"].split("::")[0] for row in told["kernels"]}
    texts = [path.read_text() for path in (ROOT / "plugins" / "kernels").glob("*.cuh")]
    sources = "".join(text for text in texts if "__global__" in text)
    assert files == set(re.findall(r"^namespace (\w+) \{", sources, re.MULTILINE)) - {"once", "tokenrt"}
    assert {row["operator"] for row in told["operators"]} == operator_work.WORKS.keys()
    for row in told["kernels"]:
        assert all(
            used["spilled_bytes"] == used["stack_bytes"] == 0 for used in row["architectures"].values()
        )


def test_bad_input_ends_with_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert kernels.main(["--arch", "ampere", "--out", str(tmp_path)]) == 2
    assert "'ampere' is no architecture" in capsys.readouterr().err
