"""ToDRE, first stage: tokens that together resemble each other least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, greedy, scores, steps
from tokenrt.passes.ops.token_greedy_select import MAX_SUM, MOST_IMPORTANT


@dataclass(frozen=True)
class ToDRE(Method):
    """Choose the token with the most class attention, then each time the one of smallest sum of cosines to those chosen.

    The paper's second stage, which drops all tokens late in the language model, is todre_late. Padding resembles nothing, and
    is not the first.
    Options: score of the first token: class (of the last block, as published), received (towers without a class token, where the
    paper draws it), importance (an input of the model) or auto; order of the kept tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "todre"
    summary: ClassVar[str] = "choose tokens one by one, each the least like all those chosen before"
    paper: ClassVar[str] = (
        "Li et al., ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance, arXiv 2505.18757"
    )
    reads: ClassVar[tuple[str, ...]] = ("class_attention", "received_attention", "tokens")
    evidence: ClassVar[Evidence] = "independent implementation"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("ToDRE: the first stage",)

    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, greedy.HOW)
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = scores.numbers(op, greedy.importance(op, taps, site, self.score))
        there = scores.present(op, taps)
        index = op(
            "TokenGreedySelect",
            scores.apart(op, taps, clusters.finite(op, steps.float_tokens(op, taps))),
            score if there is None else op("Mul", score, there),
            keep=site.keep,
            protect=site.protect,
            order=steps.ORDERS[self.order],
            objective=MAX_SUM,
            power=0.0,
            mix=0.0,
            seed=MOST_IMPORTANT,
        )
        return steps.pruned(op, taps, site, index)
