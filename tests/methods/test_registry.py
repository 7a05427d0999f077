"""The registry of methods: names, near misses, options, and that a file is all a method needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method


def test_the_methods_of_this_version() -> None:
    assert {"evit", "random", "slice", "tome", "topk"} <= set(methods.names())
    assert list(methods.names()) == sorted(methods.names())
    for name in methods.names():
        method = methods.get(name)
        assert issubclass(method, Method)
        assert method.name == name


@pytest.mark.parametrize(
    ("wrong", "hint"), [("tom", "tome"), ("top_k", "topk"), ("EVIT", "methods: "), ("", "methods: ")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, hint: str) -> None:
    with pytest.raises(MethodError, match=hint):
        methods.get(wrong)


def test_options_are_read_from_text() -> None:
    made = methods.get("evit").from_options({"fuse": "no", "order": "score"})
    assert made.options() == {"fuse": False, "score": "auto", "order": "score"}
    assert methods.get("random").from_options({"seed": "7"}).options() == {"seed": 7}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tome", {"seed": 1}, "method 'tome' has no option 'seed'; its options: every"),
        ("random", {"seed": "many"}, "seed=many of method 'random': expected int"),
        ("evit", {"fuse": "perhaps"}, "expected true or false"),
        ("topk", {"score": "loudest"}, "expected one of auto, class, received, key_norm"),
        ("evit", {"order": "size"}, "expected one of position, score"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        methods.get(name).from_options(options)


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from dataclasses import dataclass
from tokenrt.passes.methods.contract import Method

@dataclass(frozen=True)
class Newest(Method):
    name, family, summary, paper, reads = "newest", "floor", "does nothing", "none", ()
"""
    (tmp_path / "newest.py").write_text(source)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods._registry.cache_clear()
    try:
        assert methods.get("newest").summary == "does nothing"
        assert "newest" in methods.names()
    finally:
        methods._registry.cache_clear()
