"""What leaves the program: clean output, one error line, the right status, a traceback only on request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import tokenrt
from tests.tokenrt.conftest import Answer, Run
from tokenrt import __version__
from tokenrt.cli import boundary
from tokenrt.errors import OURS, ModelError, ProofError

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


def test_long_work_is_told_in_lines_where_there_is_no_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Slow(Answer):
        def __call__(self, *args: Any, **kwargs: Any) -> Answer:
            for number in range(5):
                clock[0] += 6
                kwargs["progress"](f"plan {number}")
            return self

    monkeypatch.setattr(boundary.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(vars(tokenrt), "tune", Slow())
    done = run("tune", "m.onnx", "--data", "d", "--flops", "0.5", "-o", "run", "--json")
    assert done.stderr.splitlines() == ["tune: plan 1 ...", "tune: plan 3 ..."]
    assert json.loads(done.stdout) == {"answer": 42}


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


FAULT = ProofError(
    "a stream has another count",
    node="Mul node '/ln/Mul'",
    expected="15 tokens",
    found="[B,17,64]",
    run="method tome, plan reduce{method=tome,sites=0:15}",
)


def test_a_fault_of_our_own_says_so_where_and_how_to_report_it(run: Run, stand_in: StandIn) -> None:
    stand_in("reduce", error=FAULT)
    words = ("reduce", "m.onnx", "-o", "r.onnx", "--method", "tome", "--remove", "2")
    done = run(*words)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: a stream has another count. At Mul node '/ln/Mul': expected 15 tokens, got [B,17,64]. "
        f"{OURS}; nothing was written. To report it, send this line: "
        f"tokenrt {__version__}, method tome, plan reduce{{method=tome,sites=0:15}}\n"
    )
    done = run(*words, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"error": {"type": "ProofError", "message": str(FAULT)}}


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("by zero"),
        KeyError("x"),
        AssertionError(),
        RecursionError("deep"),
        RuntimeError("a\nb"),
    ],
    ids=repr,
)
def test_an_unexpected_exception_is_told_as_our_fault(run: Run, stand_in: StandIn, error: Exception) -> None:
    stand_in("inspect", error=error)
    done = run("inspect", "m.onnx")
    kind = type(error).__name__
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: unexpected {kind}: ")
    assert OURS in done.stderr
    assert f"send this line: tokenrt {__version__}, command inspect, {kind}" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)["error"]
    assert found["type"] == kind
    assert found["message"] in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "r.onnx"), "the system refuses: .*No space left.*r.onnx"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_ours(
    run: Run, stand_in: StandIn, error: Exception, words: str
) -> None:
    stand_in("inspect", error=error)
    done = run("inspect", "m.onnx")
    assert done.exit_code == 1
    assert re.search(words, done.stderr)
    assert OURS not in done.stderr


def test_the_help_tells_the_exit_statuses(run: Run) -> None:
    said = " ".join(run("--help").stdout.split())
    assert "1 a check that says no, or a fault in tokenrt itself" in said


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
