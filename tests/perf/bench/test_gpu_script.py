"""`make gpu` as far as a CPU goes: every step of the dry run, its results file, what it does without a GPU, its deadline."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.plugins.helpers.running import needs_compiler
from tokenrt.errors import DeviceError, TargetError
from tokenrt.passes.ops import DOMAIN
from tokenrt.perf.bench.gpu import __main__ as script
from tokenrt.perf.bench.gpu import memory, models, operators, suite
from tokenrt.perf.bench.gpu.card import Card, card
from tokenrt.perf.bench.gpu.deadline import Deadline
from tokenrt.perf.cost.jobs import jobs
from tokenrt.plugins.host import kernels
from tokenrt.plugins.host.launches import KERNELS

SECONDS = 300


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(models, "REDUCTIONS", {name: models.REDUCTIONS[name] for name in names})


def dry(folder: Path, *steps: str) -> Any:
    assert script.main(["--host", "--out", str(folder), *(f"--only={step}" for step in steps)]) == 0
    told = json.loads((folder / "gpu-host.json").read_text())
    assert told["evidence"] == "dry run on a CPU: no figure here is of a GPU"
    assert told["card"] is None
    return told["steps"]


@needs_compiler
def test_the_dry_run_of_the_operators(tmp_path: Path) -> None:
    found = dry(tmp_path, "operators")["operators"]
    compared, timed = found["agreement"], found["times"]
    assert {row["operator"] for row in compared} == {row["operator"] for row in timed} == KERNELS.keys()
    assert all(row["agrees"] for row in compared)
    assert all(row["us"] > 0 for row in timed)


@needs_compiler
@pytest.mark.parametrize(
    "names",
    [("tome once", "slice"), pytest.param(tuple(models.REDUCTIONS), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_the_dry_run_of_the_models(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both forms of functions that a GPU would run: portable bodies and those for GPUs."""
    monkeypatch.setattr(models, "SECONDS", 0.1)
    _only(monkeypatch, *names)
    found = dry(tmp_path, "models")["models"]
    assert found["errors"] == []
    assert {row["name"] for row in found["times"]} == set(names)
    assert len({row["runtime"] for row in found["times"]}) == 2


def test_the_form_of_plugins_has_bare_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    _only(monkeypatch, "tome once", "slice")
    made = models._models(models.TINY["tiny"], tmp_path, tiny=True)
    for name, path in made.items():
        bare = onnx.load(models._bare(path, tmp_path), load_external_data=False)
        ours = [node for node in bare.graph.node if node.domain == DOMAIN]
        assert not bare.functions or name == models.UNREDUCED
        assert bool(ours) == (name not in (models.UNREDUCED, "slice")), name


@pytest.mark.slow
def test_the_tests_of_the_gpu_are_collected_and_skipped_here() -> None:
    found = suite.run(None, Deadline(SECONDS))
    assert (found["failed"], found["complete"]) == (0, True)
    assert found["passed"] + found["skipped"] > 100
    if card() is None:
        assert found["passed"] == 0


def test_tests_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_right():\n    pass\n\ndef test_wrong():\n    assert 0\n")
    found = suite.run(None, Deadline(SECONDS), tmp_path)
    assert (found["passed"], found["failed"], found["complete"]) == (1, 1, True)
    assert found["names"][0].endswith("::test_wrong")
    (tmp_path / "test_two.py").write_text("import time\n\ndef test_long():\n    time.sleep(60)\n")
    assert "more than 50% of the time" in suite.run(None, Deadline(0), tmp_path)["left_out"]


@needs_compiler
def test_a_kernel_that_errs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of the table, with outputs that are off by one where they are positions."""
    library, exact = kernels.library(), operators.bound

    class Wrong:
        def __enter__(self) -> Any:
            start, outputs = self.held.__enter__()
            self.outputs = outputs
            return start, outputs

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.held = exact(*arguments, **options)

        def __exit__(self, *reason: Any) -> None:
            for output in self.outputs:
                output += 1
            self.held.__exit__(*reason)

    monkeypatch.setattr(operators, "bound", Wrong)
    for job in jobs(operators.SMALL, 1):
        assert not operators.agreement(job, library, gpu=False)["agrees"], job.operator


def test_a_step_that_fails_ends_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise TargetError("no such thing")

    monkeypatch.setattr(script, "STEPS", {"a": fails, "b": lambda *_: {"failed": 0, "complete": True}})
    told = script.run(None, 1, ["a", "b"])
    assert told["steps"]["a"]["error"] == "no such thing"
    assert told["steps"]["b"]["failed"] == 0


def test_behind_the_deadline_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "slice")
    over = Deadline(0)
    found = models.run(None, over)
    assert (found["complete"], found["times"]) == (False, [])
    assert over.over()


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "card", lambda: None)
    assert script.main([]) == 2
    assert "no NVIDIA GPU here; --host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "capability", "target"),
    [
        ("NVIDIA H100 80GB HBM3", 90, "h100"),
        ("NVIDIA A100-SXM4-80GB", 80, "a100"),
        ("NVIDIA GeForce RTX 4090", 89, "rtx-4090"),
        ("NVIDIA L4", 89, "l4"),
        ("NVIDIA T4", 75, None),
    ],
)
def test_the_target_of_a_card(name: str, capability: int, target: str | None) -> None:
    found = Card(name, capability, 13000).target
    assert (None if found is None else found.name) == target


def test_counts_of_a_report() -> None:
    xml = """<testsuites><testsuite>
      <testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>
      <testcase classname="a" name="z"><skipped/></testcase></testsuite></testsuites>"""
    assert suite.counted(xml) == {"failed": 1, "complete": True, "passed": 1, "skipped": 1, "names": ["a::y"]}
    assert suite.run(None, Deadline(SECONDS), Path("nowhere"))["left_out"].startswith("there is no nowhere")


class Fake:
    """Memory of this process in place of a GPU's."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def malloc(self, place: Any, count: int) -> int:
        buffer = kernels.aligned((count,), np.uint8)
        place._obj.value = buffer.ctypes.data
        self.held[buffer.ctypes.data] = buffer
        return 0

    def free(self, place: int) -> int:
        del self.held[place]
        return 0

    def runtime(self) -> SimpleNamespace:
        def copied(to: int, source: int, count: int, _: int) -> int:
            ctypes.memmove(to, source, count)
            return 0

        return SimpleNamespace(
            cudaMalloc=self.malloc, cudaMemcpy=copied, cudaFree=self.free, cudaDeviceSynchronize=lambda: 0
        )


@needs_compiler
def test_the_way_over_device_memory_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of the CPU on memory that a stand-in for CUDA gave: copied there, run, copied back, given back."""
    fake = Fake()
    monkeypatch.setattr(memory, "runtime", fake.runtime)
    for job in operators._single(operators.SMALL):
        assert operators.agreement(job, kernels.library(), gpu=True)["agrees"], job.operator
    assert fake.held == {}


def test_what_is_written_behind_a_tensor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(memory, "runtime", fake.runtime)
    with (
        pytest.raises(DeviceError, match=r"behind a tensor of shape \[3\]"),
        memory.on_device([np.zeros(3)]) as (at,),
    ):
        ctypes.memset(at + 24, 1, 1)
    assert fake.held == {}
