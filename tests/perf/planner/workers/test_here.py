"""Plans run by threads of one process: the answers are those of one thread, in the order asked, and no plan stops another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.harm import Harm
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.workers.here import Here

SMALL = PlainViT(width=64, heads=2, blocks=3, patch=16, image=64, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("here") / "model.onnx")


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((6, 3, 64, 64), np.float32)}


def asked(judge: Judge) -> Iterator[tuple[str, Plan]]:
    """Six plans, of which the third fits no model of 17 tokens."""
    for number in range(6):
        plan = judge.bench.reducer.plan(("topk", "tome")[number % 2], Budget.remove(1 + number // 2))
        yield f"plan {number}", replace(plan, tokens=18) if number == 2 else plan


def found(model: Path, pictures: dict[str, Any], threads: int) -> list[tuple[str, Harm | str]]:
    with Judge.of(model, pictures, batch=2, threads=threads) as judge:
        return [
            (label, str(answer) if isinstance(answer, TokenrtError) else answer)
            for label, answer in judge.map(asked(judge))
        ]


def test_answers_do_not_depend_on_the_number_of_threads(model: Path, pictures: dict[str, Any]) -> None:
    alone = found(model, pictures, 1)
    assert [label for label, _ in alone] == [f"plan {number}" for number in range(6)]
    assert "the plan is for 18 tokens" in str(alone[2][1])
    assert sum(isinstance(answer, Harm) for _, answer in alone) == 5
    for threads in (2, 3):
        assert found(model, pictures, threads) == alone


def test_answers_in_any_order_are_given_in_the_order_asked(model: Path, pictures: dict[str, Any]) -> None:
    class Reversed(Here):
        def run(self, plans: Iterable[Plan]) -> Iterator[tuple[int, Harm | TokenrtError]]:
            yield from reversed([*super().run(plans)])

    alone = found(model, pictures, 1)
    with Judge.of(model, pictures, batch=2, threads=1) as judge:
        turned = replace(judge, workers=Reversed(judge.workers.exam, 1))
        labels, answers = zip(*turned.map(asked(judge)), strict=True)
    assert [*labels] == [label for label, _ in alone]
    assert answers[3] == alone[3][1]


def test_the_next_plan_is_made_before_the_last_is_judged(model: Path, pictures: dict[str, Any]) -> None:
    with Judge.of(model, pictures, batch=2, threads=2) as judge:
        made = list[str]()

        def noted() -> Iterator[tuple[str, Plan]]:
            for label, plan in asked(judge):
                made.append(label)
                yield label, plan

        answers = judge.map(noted())
        next(answers)
        assert 1 < len(made) <= 4
        answers.close()
