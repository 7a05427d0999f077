"""Budgets, options and plans that do not fit: one message with the numbers, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import refused_call, refused_line
from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Budget, Plan, PlannedSite

# The model has two blocks and six tokens, the first protected.
LINES = {
    "more-tokens-than-there-are": ("tome --tokens 7,7", "block 0: 7 tokens are to stay, but only 6"),
    "more-than-arrive": ("tome --tokens 4,5", "block 1: 5 tokens are to stay, but only 4"),
    "no-token": ("tome --tokens 0,0", "block 0: 0 tokens are to stay; at least 2"),
    "negative": ("tome --tokens=-3,2", "block 0: -3 tokens are to stay; at least 2"),
    "only-the-protected": ("topk --tokens 1,1", "1 are protected and at least one more"),
    "more-than-half": ("tome --tokens 3,3", "tome can leave at least 4 of 6"),
    "evit-without-room-to-fuse": ("evit --tokens 2,2", "evit can leave at least 3 of 6"),
    "one-count-for-two-blocks": ("tome --tokens 5", "1 counts? for 2 blocks"),
    "counts-that-are-none": ("tome --tokens 5,x", "--tokens 5,x: expected whole numbers"),
    "negative-removal": ("tome --remove -1", "--remove -1: a whole number"),
    "removing-all-that-is-free": ("tome --remove 5", "block 0 has 6 tokens, 1 of them protected; at most 2"),
    "removing-more-than-all": ("topk --remove 100", "block 0 has 6 tokens, 1 of them protected; at most 4"),
    "keeping-nothing": ("topk --keep 0 --layers 0", "--keep 0.0: a keep ratio lies above 0"),
    "keeping-more-than-all": ("topk --keep 1.5 --layers 0", "--keep 1.5: a keep ratio .* at most 1"),
    "keeping-no-number": ("topk --keep nan --layers 0", "--keep nan"),
    "keep-without-layers": ("topk --keep 0.5", "--keep needs --layers"),
    "a-block-there-is-not": ("topk --keep 0.5 --layers 0,7", "block 7 does not exist; .* blocks 0 to 1"),
    "a-block-before-the-first": ("topk --keep 0.5 --layers=-1", "block -1 does not exist"),
    "a-block-twice": ("topk --keep 0.5 --layers 1,1", "--layers 1,1: a block is named twice"),
    "layers-that-are-none": ("topk --keep 0.5 --layers x", "--layers x: expected whole numbers"),
    "no-work-at-all": ("tome --flops 0", "--flops 0.0: a fraction"),
    "more-work": ("tome --flops 2", "--flops 2.0: a fraction"),
    "less-work-than-possible": ("tome --flops 0.01", r"--flops 0.01: tome can reach 0\.\d+"),
    "two-budgets": ("tome --remove 1 --flops 0.5", "--remove and --flops are each a budget"),
    "no-budget": ("tome", "no budget: give exactly one of"),
    "unknown-method": ("tomme --remove 1", "no method is called 'tomme'; did you mean tome"),
    "unknown-option": ("tome --remove 1 --set mode=fast", "'tome' has no option 'mode'"),
    "option-out-of-its-values": ("topk --remove 1 --set score=best", "option score=best .* expected one of"),
    "option-of-another-type": ("random --remove 1 --set seed=abc", "option seed=abc .* expected int"),
    "option-below-its-range": ("random --remove 1 --set seed=-4", "option seed=-4 .* 0 or more"),
    "option-without-value": ("topk --remove 1 --set score", "--set score: expected NAME=VALUE"),
    "unknown-site": ("tome --remove 1 --site nowhere", "nowhere.*after-attention"),
    "shape-of-another-rank": ("tome --remove 1 --shape x=1x6x4x4", "the input has 3 axes"),
    "shape-of-no-input": ("tome --remove 1 --shape y=1x6x4", "no such input; its inputs: x"),
    "shape-against-the-model": ("tome --remove 1 --shape x=1x7x4", "axis 1 is fixed to 6 .* not 7"),
    "shape-without-sizes": ("tome --remove 1 --shape x", "--shape x: expected NAME="),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    return path


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("verb", ["reduce", "plan"])
def test_a_line_that_does_not_fit(kind: str, verb: str, model: Path) -> None:
    words, message = LINES[kind]
    target = model.parent / ("out.onnx" if verb == "reduce" else "out.toml")
    refused_line(model.parent, message, verb, model, "-o", target, "--method", *words.split())


CALLS: dict[str, tuple[Callable[[], Budget], str]] = {
    "7,7": (lambda: Budget.tokens([7, 7]), "7 tokens are to stay, but only 6"),
    "0": (lambda: Budget.tokens([0, 0]), "at least 2 must"),
    "-1": (lambda: Budget.remove(-1), "0 or more"),
    "1.5": (lambda: Budget.remove(1.5), "a whole number"),  # type: ignore[arg-type]
    "words": (lambda: Budget.remove("two"), "a whole number"),  # type: ignore[arg-type]
    "infinite": (lambda: Budget.remove(float("inf")), "a whole number"),  # type: ignore[arg-type]
    "yes": (lambda: Budget.remove(True), "a whole number"),
    "ratio": (lambda: Budget.keep(1.2, [0]), "at most 1"),
    "ratio-words": (lambda: Budget.keep("half", [0]), "keep ratio"),  # type: ignore[arg-type]
    "layers-words": (lambda: Budget.keep(0.5, "01"), "--layers '01'"),  # type: ignore[arg-type]
    "layers": (lambda: Budget.keep(0.5), "needs --layers"),
    "counts-fractions": (lambda: Budget.tokens([4.5, 4]), "expected a list of whole"),  # type: ignore[list-item]
    "flops": (lambda: Budget.flops(0), "fraction of the model's work"),
    "block": (lambda: Budget.remove(1, [4]), "block 4 does not exist"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_that_does_not_fit(kind: str, model: Path) -> None:
    budget, message = CALLS[kind]
    target = model.parent / "out.onnx"
    refused_call(
        model.parent,
        message,
        lambda: tokenrt.reduce(model, method="tome", budget=budget(), output=target),
    )


def edit(old: str, new: str, count: int = 1) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return change


PLANS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a-block-there-is-not": (edit("block = 1", "block = 9"), "block 9 does not exist; .* blocks 0 to 1"),
    "a-block-before-the-first": (edit("block = 1", "block = -1"), "block -1 does not exist"),
    "two-sites-at-one-place": (edit("block = 1", "block = 0"), "block 0 has a site before it"),
    "two-sites-in-one-block": (
        edit('block = 1\nwhere = "after-attention"', 'block = 0\nwhere = "after-block"'),
        "block 0 has a site before it; a block takes one",
    ),
    "sites-out-of-order": (
        lambda text: (
            text.replace("block = 0", "block = 7")
            .replace("block = 1", "block = 0")
            .replace("block = 7", "block = 1")
        ),
        "does not come after the site before it",
    ),
    "another-models-tokens": (edit("tokens = 6", "tokens = 197"), "for 197 tokens, the model has 6"),
    "another-models-blocks": (edit("blocks = 2", "blocks = 12"), "for 12 blocks, the model has 2"),
    "other-protected-tokens": (edit("protected = 1", "protected = 3"), "for 3 protected tokens"),
    "more-than-arrive": (edit("tokens = 4", "tokens = 60"), "block 1: 60 tokens are to stay, but only 5"),
    "no-token": (edit("tokens = 4", "tokens = 0"), "0 tokens are to stay"),
    "no-toml": (lambda text: text + "[[site", "cannot read plan .*plan.toml"),
    "no-text": (lambda text: b"\xff\xfe\x00" + text.encode(), "cannot read plan .*plan.toml"),
    "empty": (lambda text: "", "'method' must be str"),
    "no-method": (edit('method = "tome"\n', ""), "'method' must be str"),
    "a-number-for-a-method": (edit('"tome"', "3"), "'method' must be str, found 3"),
    "a-word-for-a-count": (edit("tokens = 5", 'tokens = "five"'), "'tokens' must be int, found 'five'"),
    "a-fraction-for-a-count": (edit("tokens = 5", "tokens = 5.5"), "'tokens' must be int, found 5.5"),
    "a-truth-for-a-count": (edit("tokens = 5", "tokens = true"), "'tokens' must be int, found True"),
    "a-word-for-a-truth": (edit("= true", '= "yes"'), "'proportional_attention' must be bool"),
    "a-word-for-the-work": (edit("before = ", 'before = "much" # '), "'before' must be int"),
    "a-number-for-a-site": (
        lambda text: "site = [1]\n" + text.split("[[site]]")[0],
        "site 0 must be a table",
    ),
    "a-place-there-is-not": (edit("after-attention", "before"), "where='before' is not one of"),
    "a-misspelt-entry": (edit("blocks = 2", "blocks = 2\nsites = 2"), "no entry 'sites'"),
    "a-misspelt-entry-of-a-site": (edit("tokens = 5", "tokens = 5\nkeep = 3"), "site 0 has no entry 'keep'"),
    "an-unknown-method": (edit('"tome"', '"tomme"'), "did you mean tome"),
    "an-unknown-option": (edit("[options]", "[options]\nmode = 1"), "'tome' has no option 'mode'"),
    "no-site-at-all": (lambda text: text.split("[[site]]")[0], "removes no token .*--allow-noop"),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_that_does_not_fit(kind: str, model: Path) -> None:
    change, message = PLANS[kind]
    tokenrt.plan(model, method="tome", budget=Budget.remove(1)).save(model.parent / "plan.toml")
    path, target = model.parent / "plan.toml", model.parent / "out.onnx"
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    refused_call(model.parent, message, lambda: tokenrt.reduce(model, plan=path, output=target))
    refused_line(model.parent, message, "reduce", model, "-o", target, "--plan", path)


@pytest.mark.parametrize(("name", "message"), [("none.toml", "none.toml"), (".", "cannot read plan")])
def test_a_plan_that_is_no_file(name: str, message: str, model: Path) -> None:
    target = model.parent / "out.onnx"
    refused_line(model.parent, message, "reduce", model, "-o", target, "--plan", model.parent / name)


def test_a_plan_and_a_method_at_once(model: Path) -> None:
    plan = tokenrt.plan(model, method="tome", budget=Budget.remove(1))
    refused_call(
        model.parent,
        "either a plan or a method",
        lambda: tokenrt.reduce(model, plan=plan, method="tome", budget=Budget.remove(1)),
    )
    plan.save(model.parent / "plan.toml")
    refused_line(
        model.parent, "--plan already says --method", "reduce", model,
        "-o", model.parent / "out.onnx", "--plan", model.parent / "plan.toml", "--method", "tome",
    )  # fmt: skip


@pytest.mark.parametrize("missing", [{"method": "tome"}, {"budget": Budget.remove(1)}, {}], ids=str)
def test_half_an_order(missing: dict[str, Any], model: Path) -> None:
    with pytest.raises(PlanError, match="needs a plan, or a method and a budget"):
        tokenrt.reduce(model, **missing)


def test_a_plan_made_in_python_is_checked_like_one_from_a_file(model: Path) -> None:
    plan = Plan("tome", 6, 1, 2, (PlannedSite(5, "after-attention", 4),), True)
    with pytest.raises(PlanError, match="block 5 does not exist"):
        tokenrt.reduce(model, plan=plan)
