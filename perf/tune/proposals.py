"""Proposals for a search: what is known of single places, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.planning.request import Request
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.sensitivity import sensitivity
from tokenrt.perf.tune.additive import Additive, Curve
from tokenrt.perf.tune.families import Candidate, Freedom
from tokenrt.perf.tune.improve import Improver, Leaving, Mixture
from tokenrt.perf.tune.judged import Judged
from tokenrt.perf.tune.meters import Meter

SLICE = "slice"
FEW, SHARES = 1, (0.6,)
"""Methods whose places are tried one by one, the best ones, and the shares of the tokens that stay then."""

LEVELS = 12
"""Into so many parts the tokens are divided; what goes on behind a block is a number of them."""

PENALTIES = (0.0, 0.02, 0.1)
"""What a site must save to be worth it, as a share of the harm of the best plan."""


def proposals(
    judge: Judge,
    meter: Meter,
    improver: Improver,
    ranked: Sequence[Judged],
    asked: Request,
    tell: Callable[[str], None],
) -> Iterator[Candidate]:
    """For each penalty the plan of least harm by addition, as strong as the cost asks for. ranked: plans, the best first."""
    best: dict[str, Judged] = {}
    for each in ranked:
        best.setdefault(each.plan.method, each)
    names = [*best][:FEW]
    found = sensitivity(
        judge,
        names,
        shares=SHARES,
        asked=asked,
        progress=lambda what, number, of: tell(f"place {number} of {of}: {what}"),
    )
    harms: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for place, harm in found.harms.items():
        harms.setdefault((place.method, place.block), []).append((place.tokens, harm.mean))
    blocks, tokens = sorted({block for _, block in harms}), ranked[0].plan.tokens
    known = Additive(
        tokens,
        blocks,
        harms,
        {block: _behind(judge, meter, block, tokens, asked) for block in blocks},
        {name: meter.site(best[name].plan) for name in names},
    )
    levels = [round(tokens * level / LEVELS) for level in range(2, LEVELS)]
    for share in PENALTIES:
        steps = known.solve(levels, improver.most, share * ranked[0].mean)
        if not steps:
            continue
        leaving = (Leaving(step.block, step.arriving - step.staying, str(step.method)) for step in steps)
        like = best[str(steps[0].method)].plan
        fitted = improver.fitted(like, Mixture(tuple(leaving), like.proportional_attention))
        if fitted is not None:
            yield Candidate(f"sum over single places, {share:.0%} a site", *fitted, Freedom.SITES)


def _behind(judge: Judge, meter: Meter, block: int, tokens: int, asked: Request) -> Curve:
    """The cost of the model with a plain removal at a block."""
    counts = [round(share * tokens) for share in (0.25, 0.5, 0.75)]
    plans = (judge.bench.reducer.plan(SLICE, Budget.tokens([count], [block]), asked) for count in counts)
    return [(count, meter.shorter(plan)) for count, plan in zip(counts, plans, strict=True)]
