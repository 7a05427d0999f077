"""Engines' layers are traced to blocks, and what a reduction cost there is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tokenrt
from tests import zoo
from tests.targets.conftest import Fake
from tests.targets.conftest import fake as fake
from tests.targets.conftest import here as here
from tests.tokenrt.conftest import run as run
from tokenrt.errors import DeviceError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.graph.model import load, save
from tokenrt.perf.profile.engine_blocks import (
    SEVERAL,
    Trace,
    add_up,
    assign,
    fused_attention,
    reformats,
    trace,
)
from tokenrt.perf.profile.groups import AFTER, BEFORE, REST, groups_of
from tokenrt.targets.trtexec.files import Layer, LayerTime

TRACED = Trace(
    {"in": BEFORE, "q": "block 0", "soft": "block 0", "v": "block 0", "r": "block 0, reduction",
     "n1": "block 1", "n2": "block 2"},
    {"q": "MatMul", "soft": "Softmax", "v": "MatMul", "r": "TopK", "n1": "Add", "n2": "Add"},
)  # fmt: skip


def test_a_layer_counts_with_most_of_its_nodes_and_one_without_with_the_one_before() -> None:
    layers = [
        Layer("copy"), Layer("a", nodes=("q", "soft", "v", "r")), Layer("b", nodes=("r",)), Layer("reformat"),
        Layer("q + n1 + n2", nodes=("q", "n1", "n2")), Layer("c", nodes=("tokenrt_block3_TopK", "other")),
        Layer("tokenrt_mask_1_myl0_7"),
    ]  # fmt: skip
    assert assign(layers, TRACED) == [
        BEFORE, "block 0", "block 0, reduction", "block 0, reduction", SEVERAL, "block 3, reduction", REST,
    ]  # fmt: skip


def test_without_details_names_tell() -> None:
    layers = [
        Layer("q_myl0_3"),
        Layer("{ForeignNode[soft...v]}"),
        Layer("Reformatting CopyNode for Input Tensor 0 to r + n1"),
    ]
    assert assign(layers, TRACED) == ["block 0", "block 0", "block 0, reduction"]


def test_times_of_one_name_are_told_apart_by_their_order() -> None:
    layers = [
        Layer("x", nodes=("q",)),
        Layer("y", nodes=("r",)),
        Layer("x", nodes=("n1",)),
        Layer("idle", nodes=("n2",)),
    ]
    times = [LayerTime("x", 1.0), LayerTime("y", 2.0), LayerTime("x", 4.0), LayerTime("unknown", 8.0)]
    assert add_up(layers, times, TRACED) == {"block 0": 1.0, "block 0, reduction": 2.0, "block 1": 12.0}


def test_layouts_are_counted() -> None:
    layers = [
        Layer("Reformatting CopyNode for Output Tensor 0 to q"),
        Layer("z", kind="Reformat"),
        Layer("q"),
    ]
    assert reformats(layers, [LayerTime("z", 0.5), LayerTime("q", 3.0)]) == (2, 0.5)


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([Layer("_gemm_mha_v2_myl0_4", nodes=("q", "soft", "v"))], {"block 0": True}),
        ([Layer("x", tactic="sm80_fmha_fp16", nodes=("soft",))], {"block 0": True}),
        ([Layer("x", nodes=("q", "soft", "v"))], {"block 0": True}),
        (
            [Layer("x", nodes=("q",)), Layer("y", nodes=("soft",)), Layer("z", nodes=("v",))],
            {"block 0": False},
        ),
        ([Layer("x", nodes=("n1",))], {}),
    ],
)
def test_attention_is_whole_or_not(layers: list[Layer], found: dict[str, bool]) -> None:
    assert fused_attention(layers, TRACED) == found


def test_an_attention_node_is_whole_in_one_layer_only() -> None:
    traced = Trace({"a": "block 0"}, {"a": "Attention"})
    assert fused_attention([Layer("x", nodes=("a",))], traced) == {"block 0": True}
    assert fused_attention([Layer("x", nodes=("a",)), Layer("y", nodes=("a",))], traced) == {"block 0": False}


@pytest.mark.parametrize("whole", [True, False])
def test_every_node_of_a_reduced_model_has_a_name_that_tells_its_group(whole: bool) -> None:
    known = groups_of(prepare(zoo.onnx("timm_vit")))
    model = tokenrt.reduce(zoo.onnx("timm_vit"), method="tome", budget=tokenrt.Budget.remove(2)).model
    copy = load(model)
    traced = trace(copy, known, whole=whole)
    names = [str(node.name) for node in copy.graph]
    assert len(set(names)) == len(names)
    assert bool(copy.functions) != whole
    assert set(traced.groups.values()) == {
        BEFORE, AFTER, REST, *(f"block {index}{kind}" for index in range(4) for kind in ("", ", reduction")),
    }  # fmt: skip
    # An engine that was built elsewhere is traced by names alone.
    alone = Trace(known)
    inserted = [name for name, group in traced.groups.items() if group.endswith("reduction")]
    assert all(alone.group(name) == traced.groups[name] for name in inserted)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    reduced = tmp_path / "reduced.onnx"
    made = tokenrt.reduce(zoo.onnx("timm_vit"), method="tome", budget=tokenrt.Budget.remove(2))
    return save(made.model, reduced), zoo.onnx("timm_vit")


@pytest.mark.parametrize(("target", "release"), [("l4", "11.4.1"), ("orin-nano", "10.3.0")])
def test_a_profile_on_this_machine(
    here: Fake, run: Any, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    target: str, release: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    here(release, "fragile")
    done = run("profile", models[0], "--original", models[1], "--target", target, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    low, high = told["ratio"]["interval_95"]
    assert low <= told["ratio"]["ratio"] <= high
    assert told["ratio"]["rounds"] == 3
    rows = {row["group"]: row for row in told["groups"]}
    assert set(rows) == {
        BEFORE, AFTER, REST, *(f"block {index}{kind}" for index in range(4) for kind in ("", ", reduction")),
    }  # fmt: skip
    assert rows["block 2, reduction"]["original_milliseconds"] is None
    inserted = [
        row["milliseconds"] for name, row in rows.items() if name.endswith("reduction") or name == REST
    ]
    assert told["reduction_milliseconds"] == pytest.approx(sum(inserted), abs=1e-3)
    everything = sum(row["milliseconds"] for row in rows.values())
    assert told["model"]["layer_milliseconds"] == pytest.approx(everything, abs=2e-3)
    # Proportional attention adds to the logits from the second block on, which the fragile builder does not fuse.
    assert told["lost_attention_fusions"] == ["block 1", "block 2", "block 3"]
    assert told["model"]["reformat_layers"] == 1
    out = tmp_path / "out" / "profile" / target
    tag = models[1].stem
    pairs = {f"{kind}_{name}.json" for kind in ("layers", "profile") for name in ("reduced", tag)}
    assert pairs <= {path.name for path in out.iterdir()}
    shown = run("profile", models[0], "--original", models[1], "--target", target)
    assert "attention is no longer one layer in block 1, block 2, block 3" in " ".join(shown.stdout.split())


def test_an_engine_that_is_there_is_timed_at_its_own_shapes(
    here: Fake, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("11.4.1")
    monkeypatch.setattr("tokenrt.targets.build.find_spec", lambda name: None)
    engine = tmp_path / "r.engine"
    tokenrt.build(models[0], target="l4", output=engine, batch="1:2:4")
    found = tokenrt.profile(engine, original=models[1], target="l4", batch=2).as_dict()
    assert found["model"]["batch"] == 2
    assert any(row["group"] == "block 2, reduction" for row in found["groups"])
    with pytest.raises(DeviceError, match=r"takes a batch of 1:2:4, not 8"):
        tokenrt.profile(engine, target="l4", batch=8)
    with pytest.raises(DeviceError, match=r"was built for l4, not for h100"):
        tokenrt.profile(engine, target="h100")
    engine.write_bytes(b"other")
    with pytest.raises(DeviceError, match="is not the engine that its manifest speaks of"):
        tokenrt.profile(engine, target="l4")


def test_what_fails_leaves_no_folder(here: Fake, run: Any, models: tuple[Path, Path], tmp_path: Path) -> None:
    here("11.4.1", "truncate:layers")
    done = run("profile", models[0], "--target", "l4", "--out", tmp_path / "a" / "b")
    assert done.exit_code == 2
    assert "layers_reduced.json is not what trtexec writes" in done.stderr
    assert not (tmp_path / "a").exists()


def test_ssh_options_without_a_host_are_refused(run: Any, models: tuple[Path, Path]) -> None:
    done = run("profile", models[0], "--target", "l4", "--port", 22)
    assert done.exit_code == 2
    assert "--port goes with --host" in done.stderr
    done = run("profile", models[0], "--host", "jetson")
    assert done.exit_code == 2
    assert "ort-cpu is this machine" in done.stderr
