"""Schedules by name: how a removal or a keep ratio is spread over the blocks.

Adding a schedule is adding one function from a Step to a token count, and its line in SCHEDULES. They need no model:
`--schedule NAME=VALUE` turns into whole numbers when the plan is made.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tokenrt.errors import PlanError
from tokenrt.passes.planning.rates import Rates

if TYPE_CHECKING:
    from tokenrt.passes.methods.contract import Method


@dataclass(frozen=True)
class Step:
    """One block of a schedule, the `place`-th of `places` from 0: `tokens` arrive of the model's own `initial`."""

    place: int
    places: int
    tokens: int
    initial: int
    protect: int
    method: Method
    amount: float = 0
    rates: Rates | None = None
    center: float = 0


@dataclass(frozen=True)
class Schedule:
    """What `--schedule NAME=VALUE` does: VALUE, in a line, the source, and the tokens `behind` each block.

    takes: R, tokens that leave a block on average; RATIO, a share that stays, perhaps with the BLOCK at which, or with the CENTER
    around which it is reached; FILE, numbers per block. Where a method cannot remove all of R, it removes what it can; the others
    are exact. blocks: where it applies among the model's, unless --layers or the value says so.
    """

    takes: Literal["R", "RATIO", "RATIO@BLOCK", "RATIO@CENTER", "FILE"]
    summary: str
    source: str
    behind: Callable[[Step], int]
    blocks: Callable[[int], list[int]]


def constant(step: Step) -> int:
    """R leave at every block: R * L in all."""
    return step.tokens - int(step.amount)


def decreasing(step: Step) -> int:
    """2R leave at the first of L blocks, none at the last, floor(2R (L-1-l) / (L-1)) at block l between.

    As in ToMe's list of removals the fractions are cut off, so that the total is at most R * L; so is what is no
    multiple of the method's unit.
    """
    amount, last = int(step.amount), step.places - 1
    removed = 2 * amount * (last - step.place) // last if last else amount
    return step.tokens - removed + removed % step.method.unit


def cosine(step: Step) -> int:
    """R * L leave in all, and what leaves falls from 2R to 0 along a half cosine, R (1 + cos(pi t)).

    Block l of L removes the integral over its share of t, rounded down; what rounding leaves over goes to the
    first blocks, one token each.
    """
    unit = step.method.unit
    places, total = step.places, int(step.amount) * step.places // unit
    ends = [total * (t + math.sin(math.pi * t) / math.pi) for t in (n / places for n in range(places + 1))]
    whole = [math.floor(after - before) for before, after in itertools.pairwise(ends)]
    return step.tokens - unit * (whole[step.place] + int(step.place < total - sum(whole)))


def stages(step: Step) -> int:
    """ceil(ratio * n) of the n unprotected tokens stay at each stage, a fused one counted later like the others."""
    kept = math.ceil(step.amount * (step.tokens - step.protect))
    return step.method.after_keeping(kept, step.protect)


def stages_of_original(step: Step) -> int:
    """floor(ratio^i * n0) of the model's own n0 unprotected tokens stay at stage i = 1, 2, 3; at least one."""
    share = Fraction(repr(step.amount)) ** (step.place + 1)
    kept = max(math.floor(share * (step.initial - step.protect)), 1)
    return step.method.after_keeping(kept, step.protect)


def sigmoid(step: Step) -> int:
    """Layer i of L sees 1 + (ratio - 1) sigmoid(10 (i - center)) of the unprotected tokens, by a floor at every layer.

    Of v tokens there floor(v r_i / r_(i-1) + P) - P go on, P protected, in float32 as released, where two shares that round to
    the same let all pass; so the floors may leave fewer than the ratio. What leaves behind block i is what layer i + 1 does
    not see, and behind the last block nothing leaves.
    """
    import numpy as np

    if step.place + 1 >= step.places:
        return step.tokens
    one, layers = np.float32(1), np.arange(step.place, step.place + 2, dtype=np.float32)
    with np.errstate(over="ignore"):
        risen = one / (one + np.exp(np.float32(-10) * (layers - np.float32(step.center))))
    before, share = one + (np.float32(step.amount) - one) * risen
    return int(np.float32(step.tokens - step.protect) * share / before + np.float32(step.protect))


def table(step: Step) -> int:
    """The numbers of a file, pruned and merged tokens of a block taken together."""
    if step.rates is None:
        raise PlanError("schedule table needs a file of rates")
    return step.rates.behind(step.place, step.tokens)


def every_block(blocks: int) -> list[int]:
    """All blocks."""
    return list(range(blocks))


def three_stages(blocks: int) -> list[int]:
    """Blocks L/4, L/2 and 3L/4 of L, which are 3, 6 and 9 of 12."""
    if blocks < 4:
        raise PlanError(
            f"the three stages of the schedule need at least 4 blocks, and the model has {blocks}; name the "
            "blocks with --layers"
        )
    return [blocks * stage // 4 for stage in (1, 2, 3)]


def one_stage(blocks: int) -> list[int]:
    """Block L/4 of L, the first of the three stages: behind it three quarters of the work are left to save."""
    return [blocks // 4]


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "constant": Schedule(
            "R", "R leave at every block", "Bolya et al., ToMe, ICLR 2023", constant, every_block
        ),
        "decreasing": Schedule(
            "R", "2R leave at the first block, falling evenly to 0 at the last",
            "Bolya et al., ToMe, ICLR 2023", decreasing, every_block,
        ),
        "cosine": Schedule(
            "R", "from 2R to 0 along a half cosine, R times the blocks in all", "this project", cosine, every_block
        ),
        "stages": Schedule(
            "RATIO", "the ratio of what is there stays at blocks L/4, L/2 and 3L/4 of L",
            "Liang et al., EViT, ICLR 2022", stages, three_stages,
        ),
        "stages-of-original": Schedule(
            "RATIO", "the ratio, its square and its cube of the original tokens stay at these blocks",
            "Rao et al., DynamicViT, NeurIPS 2021", stages_of_original, three_stages,
        ),
        "once": Schedule(
            "RATIO@BLOCK", "the ratio of what is there stays at one block, L/4 of L where @BLOCK is left out",
            "this project", stages, one_stage,
        ),
        "sigmoid": Schedule(
            "RATIO@CENTER", "the ratio stays, reached within two layers around the center, which need not be whole",
            "VisPCO, ACL 2026", sigmoid, every_block,
        ),
        "table": Schedule(
            "FILE", "numbers pruned and merged per block from a file",
            "Chen et al., DiffRate, ICCV 2023", table, every_block,
        ),
    }
)  # fmt: skip


def listed() -> str:
    """Return all names with what each takes, as in constant=R."""
    return ", ".join(f"{name}={schedule.takes}" for name, schedule in SCHEDULES.items())


def get(name: str) -> Schedule:
    """Return the schedule called `name`. Raises: PlanError with the closest names."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    close = difflib.get_close_matches(str(name), SCHEDULES, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise PlanError(f"no schedule is called {name!r}; {hint}schedules: {listed()}")


class Value(NamedTuple):
    """What the value of a schedule says: R or a ratio, rates, and blocks where it names them."""

    amount: float = 0
    rates: Rates | None = None
    layers: tuple[int, ...] | None = None
    center: float = 0


def read(name: str, value: float | str | os.PathLike[str] | Mapping[str, Any] | None) -> Value:
    """Read the value of a schedule, a number or its text, or rates. Raises: PlanError saying what it takes."""
    takes = get(name).takes
    if value is None or value == "":
        raise PlanError(f"--schedule {name}: expected {name}={takes}; schedules: {listed()}")
    if takes == "FILE":
        if not isinstance(value, str | os.PathLike | Mapping):
            raise PlanError(f"--schedule {name}={value}: expected a file of rates, or a mapping of lists")
        return Value(rates=Rates.read(value))
    layers = None
    if takes == "RATIO@BLOCK" and isinstance(value, str) and "@" in value:
        value, _, block = value.partition("@")
        if not block.isdecimal():
            raise PlanError(
                f"--schedule {name}={value}@{block}: expected a block behind the @, counted from 0"
            )
        layers = (int(block),)
    center: float | None = 0.0
    if takes == "RATIO@CENTER":
        value, _, place = str(value).partition("@")
        center = _number(place)
        if center is None or center < 0:
            raise PlanError(
                f"--schedule {name}={value}@{place}: expected a layer behind the @, as in 0.3@5.5"
            )
    amount = _number(value)
    if takes == "R" and (amount is None or amount < 0 or amount != int(amount)):
        raise PlanError(
            f"--schedule {name}={value}: a whole number of tokens, 0 or more, can leave a block on average"
        )
    if takes.startswith("RATIO") and (amount is None or not 0 < amount <= 1):
        raise PlanError(f"--schedule {name}={value}: a keep ratio lies above 0 and is at most 1")
    return Value(float(amount or 0), layers=layers, center=center or 0.0)


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None
