"""VFlowOpt: keep what global tokens attend to and what shows detail; in each cell of the grid the rest becomes one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, pictures, scores, steps

ATTENTION, GIVEN, PIXELS, NONE = "attention", "importance", "pixels", "none"
HANDED = "score"
PADDING = -2e30
"""The score of padding, below every other that is a number."""


@dataclass(frozen=True)
class VFlowOpt(Method):
    """Keep the K - G best tokens that are not the worst of their cell; what is left of each of G cells becomes one token.

    Score: mean of the attention rows of the global tokens, those that receive more than `threshold` times the mean (all, where
    none does: the release divides by zero there), plus `detail` times the softmax over tokens of the entropy of the 256 grey
    values of a token's pixels. A cell's token is the mean of its rest, weighted by score, at the place of the best of them, so
    exactly K tokens come out, in ascending position.
    The last cell of a row or column may be smaller. Scores of the kept tokens are handed on: the authors prune inside the
    language model by them again, which is score=importance, side=0 at several of its layers, with the scores as an input [B,N] of
    the whole prompt. Padding joins its cell with weight 0.
    Options: threshold; detail; side of a cell, which need not be whole (0: no cells, the rest is dropped); grids: where several
    lie one behind the other, as in 27x27+54x55 (empty: the site's); score: attention, or importance, an input of the model;
    entropy: pixels, importance (an input) or none; mean and deviation by which the model normalised the pixels.
    """

    name: ClassVar[str] = "vflowopt"
    summary: ClassVar[str] = (
        "keep tokens by attention flow and entropy of pixels, recycle the rest cell by cell"
    )
    paper: ClassVar[str] = (
        "Yang et al., VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("attention", "pixels", "importance", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    merges: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "K is fixed and every cell has its token, as in the release, whose count follows from how many cells are in use"
    )
    home: ClassVar[Home] = "features"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = (
        "VFlowOpt: pruning and recycling behind the tower, pruning inside the language model by scores from outside",
    )

    threshold: float = 28.0
    detail: float = 1.0
    side: float = 17.39
    grids: str = ""
    score: str = ATTENTION
    entropy: str = PIXELS
    mean: float = 0.5
    deviation: float = 0.5

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, (ATTENTION, GIVEN))
        steps.choice(self.name, "entropy", self.entropy, (PIXELS, GIVEN, NONE))
        steps.at_least(self.name, "side", self.side, 0)
        if any(len(part) != 2 or not all(size.isdigit() for size in part) for part in self._sides()):
            raise MethodError(
                f"option grids={self.grids} of method {self.name!r}: expected grids as in 27x27+54x55"
            )

    @property
    def proportional(self) -> bool:
        return False

    @property
    def keeps_order(self) -> bool:
        return not self.side

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        plain = self._score(op, taps, site)
        score = plain
        there = scores.present(op, taps)
        if there is not None:
            score = op("Where", op("Greater", there, 0.0), plain, PADDING)
        if not self.side:
            index = op("TokenSelect", score, keep=site.keep, protect=site.protect, order=0)
            made = steps.pruned(op, taps, site, index)
        else:
            made = self._recycled(op, taps, site, steps.free(op, score, site), plain, there)
        handed = op("GatherElements", plain, made.position, axis=1)
        return Reduction(made.tokens, made.size, made.position, made.assign, state={HANDED: handed})

    def _score(self, op: Ops, taps: Taps, site: Site) -> Value:
        """The score [B,N]."""
        if self.score == GIVEN:
            return taps.state[HANDED] if HANDED in taps.state else scores.numbers(op, taps.importance())
        attention = op("Mul", op("ReduceSum", taps.attention(), np.array([1]), keepdims=0), 1 / site.heads)
        received = op("ReduceSum", attention, np.array([1]), keepdims=0)
        least = op("Mul", op("ReduceSum", received, steps.LAST, keepdims=1), self.threshold / site.tokens)
        chosen = op("Cast", op("Greater", received, least), to=steps.FLOAT)
        any_chosen = op("Greater", op("ReduceSum", chosen, steps.LAST, keepdims=1), 0.0)
        rows = op("Where", any_chosen, chosen, 1.0)
        score = op("Squeeze", scores.weighted_mean(op, rows, attention), np.array([1]))
        if self.entropy != NONE and self.detail:
            score = op("Add", score, op("Mul", self._detail(op, taps, site), self.detail))
        return scores.numbers(op, score)

    def _detail(self, op: Ops, taps: Taps, site: Site) -> Value:
        """Softmax of the entropies of the unprotected tokens, 0 for the others: [B,N]."""
        if self.entropy == GIVEN:
            bits = steps.free(op, taps.importance(), site)
        else:
            if site.grid is None or len(site.grid) != 2:
                raise steps.no_grid(self.name, site)
            bits = pictures.entropy(op, taps.pixels(), *site.grid, self.mean, self.deviation)
        return scores.behind_protected(op, op("Softmax", bits, axis=1), site)

    def _recycled(
        self, op: Ops, taps: Taps, site: Site, score: Value, plain: Value, there: Value | None
    ) -> Reduction:
        cell = self._cells(site)
        tokens, kept, count = len(cell), site.keep - site.protect, int(cell.max()) + 1
        if kept < count:
            raise PlanError(
                f"block {site.block}: {self.name} leaves one token in each of {count} cells of side {self.side:g} beside the "
                f"{site.protect} protected ones, so {site.keep} of {site.tokens} are too few; keep {site.protect + count} or "
                "more, or ask for larger cells with --set side=M"
            )
        member = (cell[None] == np.arange(count)[:, None])[None]
        left: Value = scores.filled(op, score, 1.0, tokens)
        if kept > count:
            spared = op(
                "ScatterElements",
                score,
                _worst(op, score, member),
                _all(op, score, steps.LOWEST, count),
                axis=1,
            )
            best = op("TokenSelect", spared, keep=kept - count, protect=0, order=0)
            left = op("ScatterElements", left, best, _all(op, score, 0.0, kept - count), axis=1)
        among = op("And", op("Greater", op("Unsqueeze", left, np.array([1])), 0.5), member)
        rated = op("Where", among, op("Unsqueeze", score, np.array([1])), steps.LOWEST)
        carrier = op("ArgMax", rated, axis=2, keepdims=0)
        stays = op("ScatterElements", op("Sub", 1.0, left), carrier, _all(op, score, 1.0, count), axis=1)
        every = np.arange(tokens)[None]
        goes = op("Where", op("Greater", left, 0.5), op("Gather", carrier, cell, axis=1), every)
        center, assign = clusters.carried(op, stays, goes, site)
        weight = op("Max", plain, scores.EPSILON)
        if there is not None:
            weight = op("Mul", weight, there)
        return clusters.merged(op, taps, site, center, assign, op("Unsqueeze", weight, steps.LAST))

    def _sides(self) -> list[list[str]]:
        return [part.split("x") for part in self.grids.split("+")] if self.grids else []

    def _cells(self, site: Site) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The cell of each unprotected token, numbered in raster order, grid by grid: [T]. Raises: MethodError."""
        grids = [(int(rows), int(columns)) for rows, columns in self._sides()]
        if not grids and site.grid is not None:
            frames, (rows, columns) = site.grid[:-2], site.grid[-2:]
            grids = [(rows, columns)] * (frames[0] if frames else 1)
        if sum(rows * columns for rows, columns in grids) != site.tokens - site.protect:
            raise steps.no_grid(self.name, site)
        found: list[Any] = []
        for number, (rows, columns) in enumerate(grids):
            row, column = np.divmod(np.arange(rows * columns), columns)
            found += zip([number] * rows * columns, row // self.side, column // self.side, strict=True)
        _, cell = np.unique(np.array(found), axis=0, return_inverse=True)
        return np.asarray(cell.ravel(), np.int64)


def _all(op: Ops, like: Value, number: float, count: int) -> Value:
    return scores.filled(op, like, number, count)


def _worst(op: Ops, score: Value, member: np.ndarray[Any, np.dtype[np.bool_]]) -> Value:
    """The last of the lowest scores of each cell: [B,G]."""
    last = member.shape[2] - 1
    turned = op("Gather", op("Neg", score), np.arange(last, -1, -1), axis=1)
    rated = op("Where", member[:, :, ::-1].copy(), op("Unsqueeze", turned, np.array([1])), steps.LOWEST)
    return op("Sub", np.array(last), op("ArgMax", rated, axis=2, keepdims=0))
