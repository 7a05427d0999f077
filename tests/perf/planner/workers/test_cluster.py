"""Plans run by other processes: what goes wrong there is said, and the rest goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnx
import psutil
import pytest

from tests.helpers.documents import ROOT
from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.workers import choose, cluster
from tokenrt.perf.planner.workers.cluster import Carried
from tokenrt.perf.planner.workers.parcel import Parcel

SMALL = PlainViT(width=64, heads=2, blocks=2, patch=16, image=64, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("cluster") / "model.onnx")


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)}


@pytest.fixture(scope="module")
def judge(model: Path, pictures: dict[str, Any]) -> Iterator[Judge]:
    with Judge.of(model, pictures, threads=1) as judge:
        yield judge


def packed(judge: Judge, model: Path) -> Parcel:
    return Parcel.of(model, judge.workers.exam, {"shape": None, "protect": None})  # type: ignore[attr-defined]


def plans(judge: Judge) -> list[Plan]:
    return [judge.bench.reducer.plan(name, Budget.remove(3)) for name in ("topk", "tome", "evit")]


class Deadly(Carried):
    """Whose process one plan ends."""

    def judged(self, plan: Plan) -> Harm | str:
        if plan.method == "tome":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().judged(plan)


def test_a_plan_that_ends_its_worker_is_left_out_and_the_last_worker_is_missed(
    judge: Judge, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster, "Carried", Deadly)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.processes(1, 1) as address,
        cluster.cluster(address, packed(judge, model)) as workers,
    ):
        found = dict(workers.run(plans(judge)))
        assert "every process that ran it ended" in str(found.pop(1))
        wanted = [judge(plan) for plan in plans(judge)]
        assert found == {0: wanted[0], 2: wanted[2]}
        monkeypatch.setattr(cluster, "ALONE", 0.2)
        monkeypatch.setattr(cluster, "LOOK", 0.2)
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)][1:]:
            process.kill()
        with pytest.raises(TokenrtError, match=r"no worker is left at tcp.*, and plans wait .1.:"):
            [*workers.run(plans(judge)[:1])]


def test_a_parcel_is_all_that_is_needed(model: Path, pictures: dict[str, Any], tmp_path: Path) -> None:
    """The model lies in two files, which are gone when the parcel is opened."""
    (tmp_path / "from").mkdir()
    file = tmp_path / "from" / "model.onnx"
    onnx.save(onnx.load(model), file, save_as_external_data=True, location="w.bin")
    with Judge.of(file, pictures, threads=1) as judge:
        parcel = packed(judge, file)
        assert [*parcel.files] == ["model.onnx", "w.bin"]
        wanted = [judge(plan) for plan in plans(judge)]
        asked = plans(judge)
    for each in (tmp_path / "from").iterdir():
        each.unlink()
    with parcel.opened(tmp_path / "to") as exam:
        assert [exam.harm(exam.made(plan)) for plan in asked] == wanted


def test_other_software_is_noticed(judge: Judge, model: Path, tmp_path: Path) -> None:
    parcel = packed(judge, model)
    other = Parcel(parcel.files, parcel.options, parcel.data[:0], parcel.original, parcel.key)
    with pytest.raises(TokenrtError, match="install the same versions of tokenrt"), other.opened(tmp_path):
        pass


def test_nobody_answers(judge: Judge, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "REACHED", 0.3)
    with (
        pytest.raises(TokenrtError, match="no scheduler of Dask answers at tcp"),
        cluster.cluster("tcp://127.0.0.1:9", packed(judge, model)),
    ):
        pass


def test_nobody_works(judge: Judge, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "ALONE", 0.3)
    with (
        LocalCluster(
            n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
        ) as scheduler,
        pytest.raises(TokenrtError, match="has no worker: start some with `dask worker tcp://"),
        cluster.cluster(scheduler.scheduler_address, packed(judge, model)),
    ):
        pass


def test_processes_that_do_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "msgpack.py").write_text("raise ImportError('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(TokenrtError, match="do not start on this machine: ImportError: no such luck"),
        cluster.processes(1, 1),
    ):
        pass


def test_dask_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'tokenrt\[workers\]'"):
        choose.parse("2")


def test_words_for_workers() -> None:
    given: list[tuple[Any, Any]] = [(None, None), (2, 2), ("3", 3), ("tcp://a:8786", "tcp://a:8786")]
    assert [choose.parse(each) for each, _ in given] == [wanted for _, wanted in given]
