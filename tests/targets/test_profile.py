"""Target profiles: ours, a user's, and what is wrong with a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

import tokenrt
from tokenrt.errors import TargetError
from tokenrt.targets import load, targets
from tokenrt.targets.profile import read

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
    assert names == ["ort-cpu", "rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"]
    assert [target.name for target in tokenrt.targets()] == names
    assert load("rtx-sm120").compute_capability == "12.0"
    assert load("ort-cpu").compute_capability is None


def test_every_fact_of_ours_has_a_source_and_a_date() -> None:
    for target in targets():
        assert target.facts
        for fact in target.facts.values():
            assert fact.source
            assert fact.date.year >= 2026
        json.dumps(target.as_dict(), allow_nan=False)
        Console(width=200, record=True, file=None, quiet=True).print(target)


def test_what_rtx_takes() -> None:
    accepts = load("rtx-sm89").accepts()
    assert accepts.functions
    assert not accepts.plugins
    assert accepts.attention == {"fp16", "bf16"}
    assert accepts.attention_width == (9, 256)
    assert accepts.attention_forms == {"shared_mask"}


def test_an_unknown_name_gets_the_close_ones_and_the_list() -> None:
    with pytest.raises(
        TargetError, match=r"no target 'rtx-sm98': did you mean .*rtx-sm89.*there are ort-cpu, "
    ):
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
        ('"tensorrt-rtx"', '"other"', "builder is 'other', expected tensorrt-rtx or none"),
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
