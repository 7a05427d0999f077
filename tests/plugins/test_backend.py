"""apply_method with backend plugin-host: every method, and what goes wrong; its numbers are in tests/conformance."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.given import call
from tests.conformance.test_backends import arrays
from tests.conformance.test_methods import check_ranges
from tokenrt.errors import BuildError, MethodError, PlanError, UnsupportedError
from tokenrt.passes import methods
from tokenrt.passes.apply import apply_method
from tokenrt.plugins import compiler, host

HOST: dict[str, Any] = {"backend": "plugin-host"}
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in compiler.COMPILERS), reason="no C++ compiler on PATH"
)


@needs_compiler
@pytest.mark.parametrize("name", methods.names())
def test_every_method_runs_by_kernels(name: str) -> None:
    given = call(methods.get(name), 37, 25, 1, 2)
    try:
        wanted = apply_method(name, **given)
    except (MethodError, PlanError) as refusal:
        with pytest.raises(type(refusal)):
            apply_method(name, **HOST, **given)
        return
    found = apply_method(name, **HOST, **given)
    check_ranges(found, 37, 25)
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in wanted.items()
    }


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        UnsupportedError, match=r"needs a C\+\+17 compiler, and none of .*backend='onnxruntime'"
    ):
        apply_method("tome", arrays(8, 1, 0), keep=6, **HOST)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedError, match="CXX=no-such-compiler is not a program"):
        apply_method("tome", arrays(8, 1, 0), keep=6, **HOST)


@needs_compiler
def test_what_the_compiler_refuses_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    monkeypatch.setenv(host.EXTRA_FLAGS, "-fsyntax-only -Dtokenrt=%")
    with pytest.raises(BuildError, match=r"refused module\.cpp: .* -Dtokenrt=%"):
        apply_method("tome", arrays(8, 1, 0), keep=6, **HOST)
    assert not [*tmp_path.rglob("*.so")]


@needs_compiler
def test_a_build_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENRT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "one.cpp"
    source.write_text("int main() { return 0; }\n")
    first = compiler.compiled(source, (), "one")
    stamp = first.stat().st_mtime_ns
    assert first.is_relative_to(tmp_path / "tokenrt")
    assert compiler.compiled(source, (), "one").stat().st_mtime_ns == stamp
    assert compiler.compiled(source, ("-O1",), "one") != first
    source.write_text("int main() { return 1; }\n")
    assert compiler.compiled(source, (), "one") != first
