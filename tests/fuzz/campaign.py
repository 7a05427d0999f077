"""Hundreds of trials by number, each told in a line: `python -m tests.fuzz.campaign FIRST LAST FILE`.

`python -m tests.fuzz.campaign TRIAL.json` makes a failing trial smaller.

Numbers below `ALONE` make one change each, every change on several seeds; those above make two to six. Every third
looks also at a site, which `inspect` offers or not.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.fuzz.helpers import seeds
from tests.fuzz.helpers.changes import CHANGES
from tests.fuzz.helpers.trial import BUDGETS, ChangesTheModelError, Outcome, Trial, judge, offered

ALONE = 1000


def trial(number: int) -> Trial:
    drawn = random.Random(number)
    names = list(CHANGES)
    if number < ALONE:
        count, steps = 1, ((names[number % len(names)], drawn.randrange(1000)),)
        name = list(seeds.SEEDS)[(number // len(names) + number) % len(seeds.SEEDS)]
    else:
        count = drawn.randint(2, 6)
        steps = tuple((drawn.choice(names), drawn.randrange(1000)) for _ in range(count))
        name = drawn.choice(list(seeds.SEEDS))
    name += seeds.EXPORTED if drawn.random() < 0.25 else ""
    return Trial(name, steps, drawn.choice(seeds.of(name).methods), drawn.choice(list(BUDGETS)))


def main(first: int, last: int, file: Path) -> None:
    counts: Counter[str] = Counter()
    for number in range(first, last):
        made, start = trial(number), time.perf_counter()
        try:
            outcomes = [judge(made), *(offered(made, only=number) if number % 3 == 0 else ())]
        except ChangesTheModelError as fault:
            outcomes = [Outcome("the change", str(fault))]
        counts.update(outcome.kind for outcome in outcomes)
        told = [{"kind": outcome.kind, "told": outcome.told} for outcome in outcomes]
        entry = {
            "number": number,
            "trial": json.loads(made.text()),
            "made": len(made.changed.steps),
            "outcomes": told,
        }
        with file.open("a") as lines:
            lines.write(json.dumps({**entry, "seconds": round(time.perf_counter() - start, 1)}) + "\n")
    print(dict(counts))


def faults(made: Trial) -> dict[str, str]:
    """What is wrong with a trial: kind -> told."""
    try:
        return {each.kind: each.told for each in (judge(made), *offered(made)) if not each.good}
    except ChangesTheModelError:
        return {}


def smallest(made: Trial) -> Trial:
    """The trial with fewer changes and the plainest method, as long as it has a fault of the same kind."""
    kind = next(iter(faults(made)))
    plain = [replace(made, model=made.model.removesuffix(seeds.EXPORTED)), replace(made, method="slice")]
    tries = [replace(made, steps=made.steps[:at] + made.steps[at + 1 :]) for at in range(len(made.steps))]
    for other in (*(tries if len(made.steps) > 1 else ()), *plain):
        if other != made and kind in faults(other):
            return smallest(other)
    return made


if __name__ == "__main__":
    if len(sys.argv) == 2:
        least = smallest(Trial.read(Path(sys.argv[1]).read_text()))
        print(least.text(), json.dumps(faults(least), indent=1))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
