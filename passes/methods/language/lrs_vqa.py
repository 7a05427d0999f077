"""LRS-VQA's coarse-to-fine pruning: keep what the text attends to, and the newline token of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps

GIVEN, LAST = "importance", "last"


@dataclass(frozen=True)
class LRSVQA(Method):
    """Keep the tokens of highest score, and the last one of every row of the grid, the newline, whatever its score.

    The score is the attention of the last word of the text in a few distilled layers of a language model (the region focus
    module), which are a model of their own: it comes as the input importance. In a model's own prompt score=last takes that of
    the block. What is kept of one scale tells the host which
    finer tiles to encode next; that loop is outside the graph. Newlines stay even where they are padding; other padding leaves
    first.
    Options: score: importance, or last; row, tokens of a row, the newline among them (0: from the grid (h, w)).
    """

    name: ClassVar[str] = "lrs_vqa"
    summary: ClassVar[str] = "keep what the text attends to and the newline of every row"
    paper: ClassVar[str] = (
        "Luo et al., When Large Vision-Language Model Meets Large Remote Sensing Imagery: Coarse-to-Fine Text-Guided Token "
        "Pruning, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("importance", "grid", "last_attention")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("importance",)
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "a fixed count, newlines among it, instead of a share or a threshold joined with the newlines"
    )
    systems: ClassVar[tuple[str, ...]] = ("LRS-VQA coarse-to-fine: the choice in one scale",)

    score: str = GIVEN
    row: int = 0

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, (GIVEN, LAST))
        steps.at_least(self.name, "row", self.row, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        free = site.tokens - site.protect
        row = self.row or (site.grid[-1] if site.grid else 0)
        if not row:
            raise steps.no_grid(self.name, site, "or the tokens of a row with --set row=R")
        if free % row:
            raise PlanError(
                f"{self.name}: {free} unprotected tokens are not whole rows of {row}; say the tokens of a row, its newline among "
                "them, with --set row=R"
            )
        if site.keep - site.protect < free // row:
            raise PlanError(
                f"{self.name}: {site.keep} of {site.tokens} tokens are fewer than the {site.protect} protected ones and the "
                f"newlines of {free // row} rows; keep {site.protect + free // row} or more"
            )
        newline = np.arange(site.tokens) >= site.protect
        newline &= (np.arange(site.tokens) - site.protect) % row == row - 1
        given = taps.importance() if self.score == GIVEN else taps.last_attention()
        score = scores.unpadded(op, taps, scores.numbers(op, given))
        score = op("Where", newline[None], scores.ALWAYS, score)
        index = op("TokenSelect", score, keep=site.keep, protect=site.protect, order=0)
        return steps.pruned(op, taps, site, index)
