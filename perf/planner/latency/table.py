"""A table of a model's latency on a target, and the time that it predicts for a plan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.planner.journal import digest
from tokenrt.perf.profile.machine import processor

Points = tuple[tuple[int, float], ...]
"""Tokens and the share of an unreduced run, by ascending tokens."""


@dataclass(frozen=True)
class Prediction:
    """Time as a share of the unreduced model's; low and high: as far off as the table was where it was tested."""

    ratio: float
    low: float
    high: float

    @property
    def speedup(self) -> float:
        return 1 / self.ratio


@dataclass(frozen=True)
class Table:
    """What a sweep found, in shares of an unreduced run of `milliseconds`.

    attention, weighted: a block's attention against the tokens that reach it, without and with sizes in it. feedforward: the rest
    of a block against the tokens behind its site. around: of what is in no block, by method; "" for none. reductions: by
    method, (arriving, staying, share) of every site that was timed. error: relative, of ratios predicted by the other plans of
    the sweep, as the largest of nine in ten. model: the digest of what was swept. machine: the processor's name.
    """

    model: str
    target: str
    batch: int
    threads: int
    machine: str
    milliseconds: float
    tokens: int
    blocks: int
    attention: Points
    weighted: Points
    feedforward: Points
    around: Mapping[str, float]
    reductions: Mapping[str, tuple[tuple[int, int, float], ...]]
    error: float = 0.0

    def predict(self, plan: Plan) -> Prediction:
        """The time of a plan. Raises: TokenrtError for what the sweep did not cover."""
        self._check(plan)
        here, sized, ratio = self.tokens, False, 0.0
        sites = {site.block: site for site in plan.sites}
        names = dict.fromkeys(plan.methods() if plan.sites else ("",))
        ratio += sum(self.around[name] for name in names) / len(names)
        for block in range(self.blocks):
            ratio += at(self.weighted if sized and self.weighted else self.attention, here)
            site = sites.get(block)
            behind = here if site is None else site.tokens
            ratio += at(
                self.feedforward, here if site is not None and site.where == "after-block" else behind
            )
            if site is not None:
                method = plan.at(site)
                ratio += self._reduction(method.name, here, behind)
                sized = sized or (method.merges and plan.proportional_attention)
            here = behind
        return Prediction(ratio, ratio * (1 - self.error), ratio * (1 + self.error))

    def check_made_for(self, model: str | os.PathLike[str]) -> None:
        """Whether the table is of this file, and of this machine. Raises: TokenrtError."""
        if self.model != digest(Path(model)):
            raise TokenrtError(f"the table is of another model than {Path(model)}: sweep this one")
        if self.machine != processor():
            raise TokenrtError(f"the table was measured on {self.machine}, this is {processor()}: sweep here")

    def _check(self, plan: Plan) -> None:
        if (plan.tokens, plan.blocks) != (self.tokens, self.blocks):
            raise TokenrtError(
                f"the table is of a model with {self.tokens} tokens and {self.blocks} blocks, the plan for {plan.tokens} and "
                f"{plan.blocks}: sweep the model that the plan is for"
            )
        if plan.outputs or plan.reduced() not in ([], [0]):
            raise TokenrtError(
                "a sweep covers sites in the blocks of the first transformer, and the plan has others"
            )
        for site in plan.sites:
            method = plan.at(site)
            if method.name not in self.reductions or method.returns != "never":
                known = ", ".join(self.reductions) or "none"
                raise TokenrtError(
                    f"the sweep did not time {method.name}, only {known}: sweep with --methods {method.name}"
                    if method.returns == "never"
                    else f"a sweep times methods whose tokens stay away, and those of {method.name} come back"
                )

    def _reduction(self, method: str, arriving: int, staying: int) -> float:
        """What a site costs: least squares over those timed, in what arrives, its pairs, what leaves, and a constant."""
        points = np.array(self.reductions[method])
        weights = np.linalg.lstsq(_features(points[:, 0], points[:, 1]), points[:, 2], rcond=None)[0]
        found = (_features(np.array([arriving]), np.array([staying])) @ weights)[0]
        return float(max(found, points[:, 2].min() / 2))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, with a digest of it."""
        body = asdict(self)
        told = json.dumps({**body, "digest": _digest(body)}, indent=2)
        with atomic(path) as temporary:
            temporary.write_text(told + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table. Raises: TokenrtError for a file that is none, or was changed."""
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            told = body.pop("digest")
            for name in ("attention", "weighted", "feedforward"):
                body[name] = tuple(map(tuple, body[name]))
            body["reductions"] = {name: tuple(map(tuple, rows)) for name, rows in body["reductions"].items()}
            table = cls(**body)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as cause:
            raise TokenrtError(f"{path} is no table of `tokenrt profile --sweep`: {cause}") from cause
        if told != _digest(asdict(table)):
            raise TokenrtError(f"{path} was changed since it was measured: sweep again")
        return table


def at(points: Points, tokens: int) -> float:
    """The share at a count: between two that were measured on the line through them, outside in proportion to the nearest."""
    counts, shares = np.array(points).T
    if tokens < counts[0]:
        return float(shares[0] * tokens / counts[0])
    if tokens > counts[-1]:
        return float(shares[-1] * tokens / counts[-1])
    return float(np.interp(tokens, counts, shares))


def monotone(points: Sequence[tuple[int, float]]) -> Points:
    """The nearest shares that never fall as tokens rise: those of one count are averaged, and neighbours that fall are pooled."""
    by_count: dict[int, list[float]] = {}
    for count, share in points:
        by_count.setdefault(count, []).append(share)
    pools: list[tuple[float, int, list[int]]] = []
    for count in sorted(by_count):
        pools.append((float(np.sum(by_count[count])), len(by_count[count]), [count]))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            (a, n, left), (b, m, right) = pools[-2:]
            pools[-2:] = [(a + b, n + m, left + right)]
    return tuple((count, whole / number) for whole, number, counts in pools for count in counts)


def _features(arriving: Any, staying: Any) -> Any:
    return np.stack([np.ones(len(arriving)), arriving, arriving**2 / 1e3, arriving - staying], axis=1)


def _digest(body: Mapping[str, Any]) -> str:
    return digest(json.dumps(body, sort_keys=True))
