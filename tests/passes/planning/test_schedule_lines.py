"""Schedules as they are written: on the command line, in files, and what does not fit, told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import refused_call, refused_line
from tokenrt.cli import app
from tokenrt.errors import PlanError
from tokenrt.passes.planning import schedules
from tokenrt.passes.planning.plan import Budget, Plan


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        ("decreasing=1", lambda: Budget.schedule("decreasing", 1)),
        ("stages=0.6 --layers 0,1", lambda: Budget.schedule("stages", 0.6, [0, 1])),
        ("table=rates.toml", lambda: Budget.schedule("table", {"prune": [1, 0], "merge": [0, 2]})),
    ],
)
def test_the_command_line_and_python_agree(
    words: str, budget: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny.model(), "model.onnx")
    Path("rates.toml").write_text("prune = [1, 0]\nmerge = [0, 2]\n")
    line = ["model.onnx", "--method", "topk", "--schedule", *words.split()]
    made = CliRunner().invoke(app, ["plan", *line, "-o", "plan.toml"])
    assert made.exit_code == 0, made.stderr
    wanted = tokenrt.plan("model.onnx", method="topk", budget=budget())
    assert Plan.load("plan.toml").sites == wanted.sites
    done = CliRunner().invoke(app, ["reduce", *line, "-o", "reduced.onnx", "--json"])
    assert done.exit_code == 0, done.stderr
    assert [site["tokens"] for site in json.loads(done.stdout)["plan"]["sites"]] == wanted.counts()[1:]


@pytest.mark.parametrize("verb", ["plan", "reduce"])
def test_the_help_names_every_schedule(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    words = " ".join(done.stdout.replace("│", " ").split())
    assert schedules.listed() in words


LINES = {
    "unknown": ("coside=3", "no schedule is called 'coside'; did you mean cosine"),
    "nothing-like-it": ("xyz=3", r"no schedule is called 'xyz'; schedules: constant=R, .*table=FILE"),
    "no-value": ("cosine", "--schedule cosine: expected cosine=R"),
    "no-number": ("cosine=x", "--schedule cosine=x: a whole number of tokens"),
    "a-fraction": ("decreasing=1.5", "--schedule decreasing=1.5: a whole number"),
    "negative": ("constant=-1", "--schedule constant=-1: a whole number of tokens, 0 or more"),
    "infinite": ("constant=inf", "--schedule constant=inf: a whole number"),
    "no-ratio": ("stages=x", "--schedule stages=x: a keep ratio"),
    "more-than-all": ("stages=1.5", "--schedule stages=1.5: a keep ratio .* at most 1"),
    "too-few-blocks": ("stages=0.5", "need at least 4 blocks, and the model has 2; name the blocks"),
    "all-that-is-free": (
        "decreasing=3",
        "--schedule decreasing=3: block 0 has 6 tokens, 1 of them protected",
    ),
    "nothing": ("constant=0", "removes no token at any block"),
    "two-budgets": ("constant=1 --remove 1", "--remove and --schedule are each a budget"),
    "no-block": ("once=0.5@x", "--schedule once=0.5@x: expected a block behind the @"),
    "a-block-beyond": ("once=0.5@2", "--schedule once=0.5: block 2 does not exist"),
    "a-block-twice": ("once=0.5@1 --layers 1", "--schedule once=0.5@1 names its block: drop --layers"),
    "once-at-two": ("once=0.5 --layers 0,1", "is for one block: name one with --layers, not 2"),
    "once-without-ratio": ("once=@1", "--schedule once=: a keep ratio"),
    "no-file": ("table=none.toml", "cannot read the rates none.toml"),
    "a-block-there-is-not": ("constant=1 --layers 7", "block 7 does not exist"),
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("verb", ["reduce", "plan"])
def test_a_line_that_does_not_fit(kind: str, verb: str, tmp_path: Path) -> None:
    words, message = LINES[kind]
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    line = ["--method", "topk", "--schedule", *words.split()]
    target = tmp_path / ("out.onnx" if verb == "reduce" else "out.toml")
    refused_line(tmp_path, message, verb, path, "-o", target, *line)


FILES = {
    "no-toml": ("prune = [1", "cannot read the rates"),
    "empty": ("", "expected the lists prune and merge, or prune_kept and merge_kept, found none"),
    "another-list": ("prune = [1, 0]\nfuse = [0, 0]", "expected the lists .* found prune, fuse"),
    "both-forms": ("prune = [1, 0]\nprune_kept = [5, 5]", "expected the lists .* found prune, prune_kept"),
    "fractions": ("prune = [0.5, 0]", r"prune must be a list of whole numbers, 0 or more, found \[0.5, 0\]"),
    "negative": ("merge = [-1, 0]", "merge must be a list of whole numbers, 0 or more"),
    "no-list": ("merge = 3", "merge must be a list of whole numbers, 0 or more, found 3"),
    "unequal": ("merge = [1, 0]\nprune = [1]", "merge has 2 and prune has 1 numbers"),
    "another-models": ("merge = [1, 0, 0]", "are for 3 blocks, not 2; give one number per block"),
    "more-than-there-are": ("merge = [1, 9]", "block 1: -4 tokens are to stay"),
    "only-the-protected": ("merge_kept = [1, 1]", "1 are protected and at least one more must stay"),
}


@pytest.mark.parametrize("kind", FILES)
def test_rates_that_do_not_fit(kind: str, tmp_path: Path) -> None:
    text, message = FILES[kind]
    path, rates = tmp_path / "model.onnx", tmp_path / "rates.toml"
    onnx.save(tiny.model(), path)
    rates.write_text(text)
    refused_line(tmp_path, message, "plan", path, "--method", "topk", "--schedule", f"table={rates}")
    refused_call(
        tmp_path,
        message,
        lambda: tokenrt.plan(path, method="topk", budget=Budget.schedule("table", rates)),
    )


def test_rates_are_no_number() -> None:
    with pytest.raises(PlanError, match="expected a file of rates"):
        Budget.schedule("table", 3)
    with pytest.raises(PlanError, match="a whole number of tokens"):
        Budget.schedule("constant", True)
