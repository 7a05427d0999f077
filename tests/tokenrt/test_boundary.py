"""What leaves the program: clean output, one error line, the right status, a traceback only on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.tokenrt.conftest import Answer, Run
from tokenrt.errors import ModelError

StandIn = Callable[..., Answer]


def tokenrt_process(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; `code` runs first."""
    program = f"{code}\nfrom tokenrt.__main__ import main; main()"
    environment = {key: value for key, value in os.environ.items() if key != "TOKENRT_DEBUG"}
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, env=environment
    )


def test_json_is_the_whole_of_standard_output(run: Run, stand_in: StandIn) -> None:
    stand_in("inspect", noise="a library speaks")
    done = run("inspect", "m.onnx", "--json")
    assert json.loads(done.stdout) == {"answer": 42}
    assert "a library speaks" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reduce", "m.onnx"), "--output"),
        (("reduce", "m.onnx", "-o", "r.onnx", "--remove", "few"), "--remove"),
        (("shrink", "m.onnx"), "shrink"),
        (("plugins", "paint"), "paint"),
        (("--loud", "inspect", "m.onnx"), "--loud"),
    ],
)
def test_words_that_make_no_call_are_one_document_too(run: Run, words: tuple[str, ...], message: str) -> None:
    done = run(*words, "--json")
    assert done.exit_code == 2
    assert message in json.loads(done.stdout)["error"]["message"]
    assert run(*words).stdout == ""


def test_without_json_the_result_is_drawn(run: Run, stand_in: StandIn) -> None:
    stand_in("inspect")
    assert run("inspect", "m.onnx").stdout == "the answer\n"


def test_a_verdict_of_no_is_printed_and_status_1(run: Run, stand_in: StandIn) -> None:
    stand_in("check", ok=False)
    done = run("check", "m.onnx", "r.onnx", "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    assert json.loads(done.stdout) == {"answer": 42}


def test_what_native_code_prints_goes_to_standard_error() -> None:
    fake = (
        "import os, tokenrt\n"
        "class A:\n"
        "    def __call__(self, *a, **k): os.write(1, b'native'); return self\n"
        "    def as_dict(self): return {}\n"
        "tokenrt.inspect = A()"
    )
    done = tokenrt_process("inspect", "m.onnx", "--json", code=fake)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "{}", "native")


def test_known_error(run: Run, stand_in: StandIn) -> None:
    stand_in("inspect", error=ModelError("m.onnx [1, 2] is empty"))
    done = run("inspect", "m.onnx")
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "error: m.onnx [1, 2] is empty\n")
    done = run("inspect", "m.onnx", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout) == {"error": {"type": "ModelError", "message": "m.onnx [1, 2] is empty"}}


def test_unknown_error_names_its_type_and_the_way_on(run: Run, stand_in: StandIn) -> None:
    stand_in("inspect", error=ZeroDivisionError("by zero"))
    done = run("inspect", "m.onnx")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: unexpected ZeroDivisionError: by zero")
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [ModelError("bad"), ZeroDivisionError("bad")])
def test_debug_lets_the_exception_through(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stand_in("inspect", error=error)
    assert run("inspect", "m.onnx", "--debug").exception is error
    monkeypatch.setenv("TOKENRT_DEBUG", "1")
    assert run("inspect", "m.onnx").exception is error


def test_interrupt_is_quiet(run: Run, stand_in: StandIn) -> None:
    stand_in("inspect", error=KeyboardInterrupt())
    done = run("inspect", "m.onnx")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


def test_a_missing_model_in_a_real_process() -> None:
    done = tokenrt_process("inspect", "no-such-model.onnx")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_no_arguments_show_the_help() -> None:
    done = tokenrt_process()
    assert "Usage: tokenrt" in done.stdout + done.stderr
