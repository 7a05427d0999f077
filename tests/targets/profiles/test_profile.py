"""Target profiles: ours, a user's, and what is wrong with a bad one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import tokenrt
from tokenrt.errors import TargetError
from tokenrt.targets import load, targets
from tokenrt.targets.profiles.facts import FACTS
from tokenrt.targets.profiles.profile import read

FOLDER = Path(tokenrt.targets.__path__[0]) / "profiles"

DEVICE = ("memory_gb", "bandwidth_gb_s", "tensor_tflops", "sm_count", "shared_memory_kib", "cuda", "tensorrt")

GOOD = """name = "mine"
summary = "a board"
builder = "tensorrt-rtx"

[facts]
compute_capability = { value = "8.7", source = "the board", date = 2026-01-02 }
precisions = { value = ["fp16"], source = "the board", date = 2026-01-02 }
plugins = { value = false, source = "the board", date = 2026-01-02 }
functions = { value = true, source = "the board", date = 2026-01-02 }
contrib_operators = { value = "unverified", source = "nobody", date = 2026-01-02 }
attention = { value = "unverified", source = "nobody", date = 2026-01-02 }
"""


def write(folder: Path, text: str = GOOD, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_targets() -> None:
    names = [target.name for target in targets()]
    assert set(names) == {path.stem for path in FOLDER.glob("*.toml") if path.name[0] != "_"}
    assert {"orin-nano", "orin-nx", "agx-orin", "agx-orin-jp7", "thor", "l4", "a10", "a100"} <= set(names)
    assert {"l40s", "h100", "h200", "b200", "rtx-3090", "rtx-4090", "rtx-5090", "dgx-spark"} <= set(names)
    assert {"rtx-portable", "ort-cpu", "ort-cuda", "ort-tensorrt"} <= set(names)
    assert names.index("rtx-sm80") < names.index("rtx-sm89") < names.index("rtx-sm120")
    assert [target.name for target in tokenrt.targets()] == names
    assert load("rtx-portable").compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert load("rtx-sm120").compute_capability == "12.0"
    assert load("ort-cpu").compute_capability is None


def test_every_fact_of_ours_has_a_source_and_a_date() -> None:
    for target in targets():
        assert target.facts
        for fact in target.facts.values():
            assert fact.source
            assert fact.date.year >= 2026
        json.dumps(target.as_dict(), allow_nan=False)


def test_every_device_speaks_of_what_a_cost_model_and_a_builder_ask_for() -> None:
    for target in targets():
        if target.builder == "tensorrt":
            assert {*DEVICE, "plugin_or_function", "opset", "precisions"} <= target.facts.keys(), target.name
            assert target.tensorrt is not None


def test_dense_throughput_is_bounded_by_twice_the_wider_type() -> None:
    for target in targets():
        dense = target.fact("tensor_tflops", {})
        for wide, narrow in (("tf32", "fp16"), ("fp16", "fp8"), ("fp16", "int8"), ("fp8", "fp4")):
            if wide in dense and narrow in dense:
                assert dense[narrow] <= 4.1 * dense[wide], target.name
                assert dense[narrow] > dense[wide], target.name
        if precisions := target.fact("precisions"):
            assert dense.keys() <= {*precisions}, target.name


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("[!_]*.toml")])
def test_a_target_is_printed_in_one_screen(name: str) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(load(name))
    lines = console.export_text().rstrip().splitlines()
    target = load(name)
    assert len(lines) <= 50
    for fact in target.facts:
        assert any(line.startswith(fact) for line in lines)
    for fact in target.facts.values():
        assert fact.source.split()[0] in "\n".join(lines)


def test_the_release_decides_between_plugin_and_function() -> None:
    assert load("agx-orin").fact("plugin_or_function") == "function"
    assert load("agx-orin-jp7").fact("plugin_or_function") == "plugin"
    assert not load("agx-orin").accepts().functions
    assert not load("agx-orin").accepts().plugin_wins
    assert load("agx-orin-jp7").accepts().plugin_wins


def test_another_release_is_put_on_a_device() -> None:
    older = load("l4", tensorrt="10.3")
    assert older.tensorrt == (10, 3)
    assert older.fact("plugin_or_function") == "function"
    assert older.compute_capability == "8.9"
    with pytest.raises(
        TargetError, match=r"no facts about TensorRT 9\.1: there are releases 10\.3, 10\.15, 11\.4"
    ):
        load("l4", tensorrt="9.1")
    with pytest.raises(TargetError, match=r"rtx-sm89 is not built by TensorRT"):
        load("rtx-sm89", tensorrt="10.3")


def test_a_profile_extends_ours(tmp_path: Path) -> None:
    write(
        tmp_path,
        """name = "mine"
summary = "our L4 servers"
builder = "tensorrt"
extends = ["l4", "_tensorrt-10.15"]

[facts.cuda]
value = "12.9"
source = "our image"
date = 2026-01-02
""",
    )
    mine = load("mine", folder=tmp_path)
    assert mine.tensorrt == (10, 15)
    assert mine.fact("cuda") == "12.9"
    assert mine.fact("memory_gb") == load("l4").fact("memory_gb")
    assert mine.facts.keys() <= FACTS.keys()
    assert "mine" not in [target.name for target in targets()]


def test_a_profile_may_wrap_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, 'name = "l4"\nsummary = "ours"\nbuilder = "tensorrt"\nextends = ["l4"]\n', "l4")
    assert load("l4", folder=tmp_path).summary == "ours"
    assert load("l4", folder=tmp_path).facts == load("l4").facts


def test_extending_goes_wrong_by_name(tmp_path: Path) -> None:
    head = 'summary = "s"\nbuilder = "tensorrt"\n'
    path = write(tmp_path, f'name = "mine"\n{head}extends = ["nobody"]\n')
    with pytest.raises(TargetError, match=r"extends 'nobody', but there is no nobody\.toml"):
        read(path)
    write(tmp_path, f'name = "mine"\n{head}extends = ["other"]\n')
    write(tmp_path, f'name = "other"\n{head}extends = ["mine"]\n', "other")
    with pytest.raises(TargetError, match=r"extends 'mine', which extends it in turn"):
        read(path)
    write(tmp_path, f'name = "mine"\n{head}extends = "l4"\n')
    with pytest.raises(TargetError, match=r"extends is 'l4', expected a list of profile names"):
        read(path)


def test_what_rtx_takes() -> None:
    accepts = load("rtx-sm89").accepts()
    assert accepts.functions
    assert not accepts.plugins
    assert accepts.attention == {"fp16", "bf16"}
    assert accepts.attention_width == (9, 256)
    assert accepts.attention_forms == {"shared_mask"}


def test_an_unknown_name_gets_the_close_ones_and_the_list() -> None:
    with pytest.raises(TargetError, match=r"no target 'rtx-sm98': did you mean .*rtx-sm89.*there are a10, "):
        load("rtx-sm98")


def test_a_users_folder_adds_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setenv("TOKENRT_TARGETS", str(tmp_path))
    mine = load("mine")
    assert mine.compute_capability == "8.7"
    assert not mine.facts["attention"].known
    assert mine.accepts().attention == frozenset()
    assert not mine.accepts().contrib
    assert "mine" in [target.name for target in targets()]


def test_a_users_target_wins_over_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD.replace('name = "mine"', 'name = "rtx-sm89"'), "rtx-sm89")
    monkeypatch.setenv("TOKENRT_TARGETS", str(tmp_path))
    assert load("rtx-sm89").summary == "a board"


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRT_TARGETS", str(tmp_path / "none"))
    with pytest.raises(TargetError, match=r"TOKENRT_TARGETS is .* not a directory"):
        targets()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('summary = "a board"\n', "", "the key 'summary' is missing"),
        ('"tensorrt-rtx"', '"other"', "builder is 'other', expected tensorrt-rtx or tensorrt or none"),
        ('name = "mine"', 'name = "yours"', "name is 'yours', expected the file's own, 'mine'"),
        ("[facts]", 'colour = "red"\n[facts]', "unknown key 'colour'"),
        ('"8.7"', '"eight"', r"facts\.compute_capability\.value is 'eight', expected a text such as"),
        ('["fp16"]', '["fp17"]', r"facts\.precisions\.value is \['fp17'\], expected a list out of"),
        ("value = false", "value = 0", r"facts\.plugins\.value is 0, expected true or false"),
        ("plugins =", "plugin =", r"facts\.plugin: no such fact; did you mean plugins\?"),
        ("plugins = {", "top_k = {", r"facts\.top_k\.value is False, expected a number above 0"),
        ('source = "nobody", ', "", r"facts\.contrib_operators\.source is missing"),
        ('source = "nobody"', 'source = ""', r"facts\.contrib_operators\.source is '', expected a text"),
        ("2026-01-02 }", '"today" }', r"facts\.compute_capability\.date is 'today', expected a date"),
        ("2026-01-02 }", '2026-01-02, why = "x" }', r"facts\.compute_capability\.why: unknown key"),
        (
            "functions = {",
            "attention_width = {",
            r"facts\.attention_width\.value is True, expected a list of two",
        ),
        ("[facts]", "[facts", "not a readable TOML file"),
        ("plugins = {", "memory_gb = {", r"facts\.memory_gb\.value is False, expected a number above 0"),
        ("functions = {", "tensor_tflops = {", r"facts\.tensor_tflops\.value is True, expected a table of"),
        ("functions = {", "tensorrt = {", r'facts\.tensorrt\.value is True, expected a text such as "10.3"'),
        ("functions = {", "plugin_or_function = {", r"value is True, expected plugin or function"),
    ],
)
def test_a_wrong_profile_is_refused_with_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TargetError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_required_fact_may_not_be_left_out(tmp_path: Path) -> None:
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith("compute_capability"))
    with pytest.raises(TargetError, match=r"\[facts\.compute_capability\] is missing"):
        read(write(tmp_path, text))


def test_a_list_where_facts_should_be(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"facts is 3, expected \[facts\.NAME\] tables"):
        read(write(tmp_path, 'name = "mine"\nsummary = "s"\nbuilder = "none"\nfacts = 3\n'))
    with pytest.raises(TargetError, match=r"facts\.plugins is 3, expected a table"):
        read(write(tmp_path, 'name = "mine"\nsummary = "s"\nbuilder = "none"\nfacts.plugins = 3\n'))
