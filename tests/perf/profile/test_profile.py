"""Where the time goes: every group has its nodes, and the groups make up the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import tokenrt
from tests import zoo
from tests.tokenrt.conftest import run as run
from tokenrt.errors import TargetError, TokenrtError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.profile import node_profile
from tokenrt.perf.profile.groups import AFTER, BEFORE, REST, groups_of
from tokenrt.perf.profile.node_profile import labelled, read, split
from tokenrt.perf.profile.profile import REPEATS


def reduced(method: str = "tome") -> ir.Model:
    return tokenrt.reduce(zoo.onnx("timm_vit"), method=method, budget=tokenrt.Budget.remove(2)).model


def event(name: str, ts: int, dur: int) -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "cat": "Node"}


def test_time_between_nodes_and_unknown_nodes_count_with_their_neighbours() -> None:
    events = [
        event("session_initialization", 0, 50),
        event("model_run", 100, 100),
        event("group0_0_kernel_time", 110, 20),
        event("ReorderOutput_kernel_time", 130, 5),
        event("group1_1/FusedMatMul_kernel_time", 140, 30),
        event("group0_2_kernel_time", 175, 20),
        event("model_run", 300, 10),
        event("group1_1_kernel_time", 301, 8),
    ]
    whole, parts = split(reversed(events), 3)
    assert whole == [100.0, 10.0]
    assert parts == [[30 + 5 + 25, 35, 0], [0, 9, 0]]


@pytest.mark.parametrize("text", ["", "{}", '[{"name": "model_run", "ts": 1', '[{"name": "x"}]', "[3]"])
def test_a_file_that_is_no_profile_or_cut_short_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(text)
    with pytest.raises(TokenrtError, match=r"nodes\.json is not a profile of ONNX Runtime"):
        read(path)


def test_an_unreduced_model_falls_into_its_blocks() -> None:
    prepared = prepare(zoo.onnx("timm_vit"))
    known = groups_of(prepared)
    assert set(known.values()) == {BEFORE, *(f"block {index}" for index in range(4)), AFTER}
    copy, order = labelled(prepared.model, known)
    assert order == [BEFORE, "block 0", "block 1", "block 2", "block 3", AFTER]
    assert len({node.name for node in copy.graph}) == len(copy.graph)


def test_a_reductions_nodes_have_a_group_of_their_own() -> None:
    known = groups_of(prepare(zoo.onnx("timm_vit")))
    model = reduced()
    inserted = sum(str(node.name).startswith("tokenrt_") for node in model.graph)
    copy, order = labelled(model, known)
    assert not copy.functions
    assert set(order) == {
        BEFORE, AFTER, REST, *(f"block {index}{kind}" for index in range(4) for kind in ("", ", reduction")),
    }  # fmt: skip
    groups = [order[int(str(node.name).split("_")[0].removeprefix("group"))] for node in copy.graph]
    own = sum(group in set(known.values()) for group in groups)
    assert own == len(model.graph) - inserted
    assert sum(group.endswith("reduction") for group in groups) > inserted / 2


def test_the_groups_make_up_the_run(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.onnx"
    ir.save(reduced(), path)
    done = run("profile", path, "--original", zoo.onnx("timm_vit"), "--rounds", 4, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["covered"] >= 0.95
    assert told["ratio"]["rounds"] == 4 * REPEATS
    assert told["ratio"]["interval_95"][0] <= told["ratio"]["ratio"] <= told["ratio"]["interval_95"][1]
    rows = {row["group"]: row for row in told["groups"]}
    assert rows["block 1, reduction"]["original_milliseconds"] is None
    assert rows["block 1, reduction"]["milliseconds"] > 0
    assert rows["block 1"]["original_milliseconds"] > 0
    parts = [row["milliseconds"] for name, row in rows.items() if name.endswith("reduction") or name == REST]
    assert told["reduction_milliseconds"] == pytest.approx(sum(parts), abs=0.01)


def test_a_model_alone_has_no_ratio(run: Any) -> None:
    shown = run("profile", zoo.onnx("timm_vit"), "--rounds", 3, "--threads", 1)
    assert shown.exit_code == 0, shown.stderr
    assert "block 3" in shown.stdout
    assert "of the original's time" not in shown.stdout


def test_what_does_not_run_here_is_said() -> None:
    with pytest.raises(TargetError, match=r"l4 does not run here.*--target l4 --print"):
        tokenrt.profile(reduced(), target="l4")
    with pytest.raises(TargetError, match="rtx-sm89 does not run here: profile runs ort-cpu"):
        tokenrt.profile(reduced(), target="rtx-sm89")


def test_the_groups_make_up_the_run_of_a_model_of_real_size(tmp_path: Path) -> None:
    source = PlainViT(width=192, heads=3, blocks=12, patch=16, image=224, classes=1000).write(
        tmp_path / "m.onnx"
    )
    less = tokenrt.reduce(source, method="tome", budget=tokenrt.Budget.remove(8)).model
    prepared = prepare(source)
    for model in (prepared.model, less):
        found = node_profile.profile(model, groups_of(prepared), batch=1, runs=5, threads=1)
        assert found.covered >= 0.95
        assert sum(found.groups.values()) == pytest.approx(found.covered * found.total)
