"""Every verb reads its options into the call of the front door, and prints what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenrt
from tests.tokenrt.conftest import Answer, Run

VERBS = [
    "demo",
    "export",
    "inspect",
    "plan",
    "reduce",
    "lower",
    "convert",
    "check",
    "compare",
    "build",
    "plugins",
    "profile",
    "methods",
    "targets",
    "tune",
    "report",
    "doctor",
]
REDUCE = ["reduce", "m.onnx", "-o", "r.onnx"]
TOME = [*REDUCE, "--method", "tome"]

StandIn = Callable[..., Answer]


def test_help_lists_exactly_the_verbs_there_are(run: Run) -> None:
    from typer.main import get_command

    from tokenrt.cli import app

    shown = run("--help")
    assert shown.exit_code == 0
    assert all(verb in shown.stdout for verb in VERBS)
    assert sorted(vars(get_command(app))["commands"]) == sorted(VERBS)


@pytest.mark.parametrize(
    "verb", [*(verb for verb in VERBS if verb != "plugins"), "plugins build", "plugins info"]
)
def test_help_of_each_verb_has_an_example_and_json(run: Run, verb: str) -> None:
    shown = run(*verb.split(), "--help")
    assert shown.exit_code == 0
    assert f"Example: tokenrt {verb}" in " ".join(shown.stdout.split())
    assert "--json" in shown.stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"tokenrt {tokenrt.__version__}\n"


def test_reduce_reads_every_option(run: Run, stand_in: StandIn) -> None:
    reduce = stand_in("reduce")
    done = run(
        *TOME, "--keep", "0.7", "--layers", "3,6,9", "--site", "after-block", "--no-proportional-attention",
        "--set", "metric=keys", "--set", "a-b=2", "--shape", "ids=Bx128", "--shape", "x=1x3", "--allow-noop",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert reduce.calls[0][0] == (Path("m.onnx"),)
    assert reduce.options == {
        "method": "tome",
        "budget": tokenrt.Budget.keep(0.7, layers=[3, 6, 9]),
        "site": "after-block",
        "proportional_attention": False,
        "options": {"metric": "keys", "a_b": "2"},
        "shape": ["ids=Bx128", "x=1x3"],
        "grid": None,
        "transformers": None,
        "protect": None,
        "span": None,
        "short": None,
        "cache": None,
        "text": None,
        "tap_layer": None,
        "allow_noop": True,
        "source_map": False,
        "output": Path("r.onnx"),
    }


def test_reduce_by_plan_passes_no_method(run: Run, stand_in: StandIn) -> None:
    reduce = stand_in("reduce")
    assert run(*REDUCE, "--plan", "p.toml").exit_code == 0
    assert reduce.options == {
        "plan": Path("p.toml"), "shape": None, "allow_noop": False, "source_map": False,
        "output": Path("r.onnx"),
    }  # fmt: skip


def test_plan_saves_where_asked(run: Run, stand_in: StandIn) -> None:
    plan = stand_in("plan")
    assert run("plan", "m.onnx", "--method", "tome", "--remove", 8).exit_code == 0
    assert plan.saved == []
    assert run("plan", "m.onnx", "--method", "tome", "--remove", 8, "-o", "p.toml").exit_code == 0
    assert plan.saved == [Path("p.toml")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--remove", "8"], lambda: tokenrt.Budget.remove(8)),
        (["--tokens", "150,100"], lambda: tokenrt.Budget.tokens([150, 100])),
        (["--flops", "0.6"], lambda: tokenrt.Budget.flops(0.6)),
        (["--keep", "0.5", "--layers", "2"], lambda: tokenrt.Budget.keep(0.5, layers=[2])),
        (["--remove", "8", "--layers", "2,3"], lambda: tokenrt.Budget.remove(8, layers=[2, 3])),
        (["--tokens", "9", "--layers", "2"], lambda: tokenrt.Budget.tokens([9], layers=[2])),
    ],
)
def test_each_budget(run: Run, stand_in: StandIn, words: list[str], expected: Callable[[], object]) -> None:
    reduce = stand_in("reduce")
    assert run(*TOME, *words).exit_code == 0
    assert reduce.options["budget"] == expected()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (TOME, "no budget: give exactly one of"),
        ([*TOME, "--remove", "8", "--flops", "0.5"], "--remove and --flops are each a budget"),
        ([*TOME, "--layers", "1"], "--layers says where"),
        ([*TOME, "--layers", "1", "--flops", "0.5"], "--layers says where"),
        ([*TOME, "--keep", "1.5", "--layers", "1"], "--keep 1.5: a keep ratio lies above 0"),
        ([*TOME, "--remove", "-1"], "--remove -1: a whole number of tokens"),
        ([*TOME, "--remove", "1"], "no such model file: m.onnx"),
        ([*TOME, "--tokens", "1,two"], "--tokens 1,two: expected whole numbers"),
        ([*TOME, "--keep", "0.5", "--layers", "1;2"], "--layers 1;2: expected whole numbers"),
        ([*REDUCE, "--remove", "8"], "no method: give --plan P.toml or --method NAME"),
        (["plan", "m.onnx", "--remove", "8"], "no method: give --method NAME"),
        ([*TOME, "--plan", "p.toml"], "--plan already says --method"),
        ([*REDUCE, "--plan", "p.toml", "--remove", "1"], "--plan already says a budget"),
        ([*REDUCE, "--plan", "p.toml", "--site", "after-block", "--set", "a=b"], "says --site, --set"),
        ([*TOME, "--remove", "1", "--set", "ab"], "--set ab: expected NAME=VALUE"),
        (["lower", "r.onnx", "-o", "l.onnx"], "exactly one of inline, plugin and target"),
        (["lower", "r.onnx", "-o", "l.onnx", "--inline", "--plugin"], "exactly one of inline"),
        (["build", "r.onnx", "-o", "r.engine", "--target", "rtx-sm0"], "no target 'rtx-sm0'"),
        (["convert", "r.onnx", "-o", "h.onnx"], "exactly one of --fp16 and --bf16"),
        (["convert", "r.onnx", "-o", "h.onnx", "--fp16", "--bf16"], "exactly one of --fp16 and --bf16"),
        (["methods", "toem"], "no method is called 'toem'; did you mean"),
        (["targets", "no-such"], "no target 'no-such'"),
    ],
)
def test_bad_input_is_one_message_and_status_2(run: Run, words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

    as_json = run(*words, "--json")
    assert as_json.exit_code == 2
    error = json.loads(as_json.stdout)["error"]
    assert message in error["message"]
    assert issubclass(getattr(tokenrt, error["type"]), tokenrt.TokenrtError)


@pytest.mark.parametrize(
    "words", [["reduce"], ["reduce", "m.onnx"], ["no-such-verb"], [*TOME, "--remove", "x"]]
)
def test_usage_errors_are_status_2(run: Run, words: list[str]) -> None:
    assert run(*words).exit_code == 2


def test_lower_check_build_export(run: Run, stand_in: StandIn) -> None:
    lower, check, build, export = map(stand_in, ("lower", "check", "build", "export"))
    assert run("lower", "r.onnx", "-o", "l.onnx", "--inline").exit_code == 0
    assert lower.options == {"inline": True, "plugin": False, "target": None, "output": Path("l.onnx")}
    assert run("check", "m.onnx", "r.onnx", "--data", "d.npz", "--min-cosine", 0.9).exit_code == 0
    assert check.calls[0][0] == (Path("m.onnx"), Path("r.onnx"))
    assert check.options == {
        "data": Path("d.npz"), "batch": 2, "seed": 0, "samples": 4, "min_cosine": 0.9, "min_agreement": None, "properties": True,
    }  # fmt: skip
    convert = stand_in("convert")
    assert run("convert", "r.onnx", "-o", "h.onnx", "--bf16", "--keep-io", "--no-check").exit_code == 0
    assert convert.options == {
        "precision": "bf16", "keep_io": True, "rules": "auto", "data": None, "check": False, "output": Path("h.onnx"),
    }  # fmt: skip
    assert run("build", "r.onnx", "--target", "rtx-sm89", "-o", "e", "--batch", "1:4:8").exit_code == 0
    assert build.options.pop("progress") is not None
    assert build.options.pop("target").name == "rtx-sm89"
    assert build.options == {
        "output": Path("e"), "batch": "1:4:8", "workspace": None, "plugins": (), "cache": None, "force": False,
        "verbose": False,
    }  # fmt: skip
    assert run("export", "timm:x", "-o", "m.onnx", "--dtype", "fp16", "--batch", 2).exit_code == 0
    assert export.options["dtype"] == "fp16"
    assert export.options["batch"] == 2


def test_methods_are_listed_and_described(run: Run) -> None:
    listed = json.loads(run("methods", "--json").stdout)["methods"]
    assert "tome" in {row["name"] for row in listed}
    assert json.loads(run("methods", "tome", "--json").stdout)["name"] == "tome"
    assert "tome" in run("methods").stdout
    assert "compared with" in run("methods", "tome").stdout


def test_targets_are_listed(run: Run) -> None:
    names = {row["name"] for row in json.loads(run("targets", "--json").stdout)["targets"]}
    assert {"rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"} <= names
    assert "rtx-sm89" in run("targets").stdout
    assert json.loads(run("targets", "rtx-sm89", "--json").stdout)["builder"] == "tensorrt-rtx"
