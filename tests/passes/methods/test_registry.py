"""The registry of methods: names, near misses, options, and that a file is all a method needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.methods import pruning
from tokenrt.passes.methods.catalog import catalog
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
        ("random", {"seed": 1.5}, "seed=1.5 of method 'random': expected int"),
        ("random", {"seed": float("inf")}, "seed=inf of method 'random': expected int"),
        ("evit", {"fuse": "perhaps"}, "expected true or false"),
        ("topk", {"score": "loudest"}, "expected one of auto, class, received, key_norm"),
        ("evit", {"order": "size"}, "expected one of position, score"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        methods.get(name).from_options(options)


SOURCE = """
from dataclasses import dataclass
from tokenrt.passes.methods.contract import Method

@dataclass(frozen=True)
class Newest(Method):
    name, summary, paper, reads, evidence = "newest", "does nothing", "none", (), "mathematics"
"""


@pytest.fixture
def afresh() -> Iterator[None]:
    """Let the folders be looked through again, before and after."""
    caches = (methods._families, methods._registry)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("afresh")
def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newest.py").write_text(SOURCE)
    monkeypatch.setattr(pruning, "__path__", [*pruning.__path__, str(tmp_path)])
    assert methods.get("newest").summary == "does nothing"
    assert methods.get("newest").family == "pruning"


@pytest.mark.usefixtures("afresh")
def test_a_new_folder_is_a_new_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folding").mkdir()
    (tmp_path / "folding" / "__init__.py").write_text('TITLE = "Folding"\nPLACE = 2.5\n')
    (tmp_path / "folding" / "newest.py").write_text(SOURCE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert [*methods.families()][:4] == ["merging", "pruning", "folding", "clustering"]
    assert methods.get("newest").family == "folding"
    assert ("Folding", ["newest"]) in [(t, [m.name for m in found]) for t, found in catalog().families()]
