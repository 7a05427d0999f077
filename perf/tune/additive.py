"""The plan of least harm as the sum of what its sites harm alone, within a cost: a path of token counts through the blocks.

Behind each block some count of tokens goes on. A step from n to k of N tokens at a block harms by what its curve rises between
the two shares, and costs what the method adds there; behind it every later part of the model is cheaper by what a plain removal
at that place would save. Both sums are exact for no plan of several sites, so what comes out is a proposal that is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.errors import DependencyError

Curve = Sequence[tuple[int, float]]
"""Tokens that stay, ascending, and a harm or a cost."""


@dataclass(frozen=True)
class Step:
    """At a block `arriving` tokens become `staying` by a method, None where all go on."""

    block: int
    arriving: int
    staying: int
    method: str | None


@dataclass(frozen=True)
class Additive:
    """What is known of single places.

    harms: by method and block, against the tokens that stay. behind: by block, the cost of the model with a plain removal there,
    as a share, against the tokens that stay. sites: by method, the share that a site adds.
    """

    tokens: int
    blocks: Sequence[int]
    harms: Mapping[tuple[str, int], Curve]
    behind: Mapping[int, Curve]
    sites: Mapping[str, float]

    def harm(self, step: Step) -> float:
        if step.method is None:
            return 0.0
        curve = [*self.harms[step.method, step.block], (self.tokens, 0.0)]
        before, after = _at(curve, step.arriving), _at(curve, step.staying)
        return max(after - before, 0.0)

    def cost(self, step: Step) -> float:
        """What a step changes: the site itself, and from here to the next block the tokens that are there."""
        own = 0.0 if step.method is None else self.sites[step.method]
        place = self.blocks.index(step.block)
        here = _at([*self.behind[step.block], (self.tokens, 1.0)], step.staying) - 1
        later = self.blocks[place + 1 :]
        return (
            own + here - (_at([*self.behind[later[0]], (self.tokens, 1.0)], step.staying) - 1 if later else 0)
        )

    def solve(self, levels: Sequence[int], most: float, penalty: float = 0.0) -> list[Step] | None:
        """The steps of least harm whose cost is at most `most`; None where no path is so cheap.

        levels: counts that may go on behind a block. penalty: harm that a site must save to be worth it. It is a shortest path
        under one more constraint, solved as an integer program by HiGHS.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import csr_array
        except ImportError as cause:
            raise DependencyError("scipy", "tune", "tokenrt tune") from cause
        levels = sorted({*levels, self.tokens}, reverse=True)
        steps = [*self._steps(levels)]
        harms = np.array([self.harm(step) + penalty * (step.method is not None) for step in steps])
        costs = np.array([self.cost(step) for step in steps])
        nodes = {node: row for row, node in enumerate(itertools.product(range(len(self.blocks) + 1), levels))}
        start, rows, columns, signs = nodes[0, self.tokens], list[int](), list[int](), list[float]()
        for column, step in enumerate(steps):
            place = self.blocks.index(step.block)
            rows += [nodes[place, step.arriving], nodes[place + 1, step.staying]]
            columns += [column, column]
            signs += [1.0, -1.0]
        flow = csr_array((signs, (rows, columns)), shape=(len(nodes), len(steps)))
        ends = {nodes[len(self.blocks), level] for level in levels}
        low = np.array([1.0 if node == start else -1.0 if node in ends else 0.0 for node in nodes.values()])
        high = np.where(low < 0, 0.0, low)
        budget = LinearConstraint(costs[None, :], -np.inf, most - 1)
        found = milp(
            harms,
            constraints=[LinearConstraint(flow, low, high), budget],
            integrality=np.ones(len(steps)),
            bounds=Bounds(0, 1),
            options={"time_limit": 20.0, "mip_rel_gap": 1e-3},
        )
        if found.x is None:
            return None
        taken = [step for step, chosen in zip(steps, found.x, strict=True) if chosen > 0.5]
        return [step for step in sorted(taken, key=lambda step: step.block) if step.method is not None]

    def _steps(self, levels: Sequence[int]) -> list[Step]:
        found = []
        for block in self.blocks:
            methods = [method for method, own in self.harms if own == block]
            for arriving in levels:
                found.append(Step(block, arriving, arriving, None))
                for method in methods:
                    least = min(tokens for tokens, _ in self.harms[method, block]) / self.tokens
                    found += [
                        Step(block, arriving, staying, method)
                        for staying in levels
                        if least * arriving <= staying < arriving
                    ]
        return found


def _at(curve: Curve, tokens: int) -> float:
    """The value at a count, between two that are known on the line through them, outside on that of the last two."""
    counts, values = np.array(sorted(curve)).T
    if tokens >= counts[0]:
        return float(np.interp(tokens, counts, values))
    slope = (values[1] - values[0]) / (counts[1] - counts[0])
    return float(values[0] + slope * (tokens - counts[0]))
