"""apply_method with backend plugin-host: every method, and what goes wrong; its numbers are in tests/conformance."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.helpers.given import call
from tests.conformance.test_backends import arrays
from tests.conformance.test_methods import check_ranges
from tokenrt import apply_method
from tokenrt.errors import BuildError, MethodError, PlanError, UnsupportedError
from tokenrt.passes import methods
from tokenrt.plugins.host import kernels
from tokenrt.plugins.toolchain import compiler

HOST: dict[str, Any] = {"backend": "plugin-host"}
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in compiler.COMPILERS), reason="no C++ compiler on PATH"
)


@needs_compiler
@pytest.mark.parametrize("name", methods.of_tokens())
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
    monkeypatch.setenv(kernels.EXTRA_FLAGS, "-fsyntax-only -Dtokenrt=%")
    with pytest.raises(BuildError, match=r"refused token_\w+/host\.cpp: .* -Dtokenrt=%"):
        apply_method("tome", arrays(8, 1, 0), keep=6, **HOST)
    assert not [*tmp_path.rglob("*.so"), *tmp_path.rglob("*.o")]


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


@needs_compiler
def test_an_edit_of_one_kernel_compiles_what_includes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "cache"))
    own, other, header = (tmp_path / name for name in ("own.cpp", "other.cpp", "kernel.cuh"))
    header.write_text("inline int one() { return 1; }\n")
    own.write_text('#include <kernel.cuh>\nextern "C" int own() { return one(); }\n')
    other.write_text('extern "C" int other() { return 2; }\n')

    def parts() -> set[Path]:
        return set((tmp_path / "cache").rglob("part.o"))

    first = compiler.linked([own, other], (f"-I{tmp_path}",), "both.so")
    before = parts()
    assert len(before) == 2
    header.write_text("inline int one() { return 3; }\n")
    second = compiler.linked([own, other], (f"-I{tmp_path}",), "both.so")
    assert first != second
    assert len(parts() - before) == 1
    moved = tmp_path / "moved"  # the same text elsewhere is the same
    moved.mkdir()
    header.rename(moved / header.name)
    assert compiler.linked([own, other], (f"-I{moved}",), "both.so") == second
    assert len(parts()) == 3
