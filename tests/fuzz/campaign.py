"""Hundreds of trials by number, each told in a line: `python -m tests.fuzz.campaign FIRST LAST FILE`.

Numbers below `ALONE` make one change each, every change on several seeds; those above make two to six. Every third
looks also at a site that `inspect` offers.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
