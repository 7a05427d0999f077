"""Evo-ViT: the tokens with the most class attention over the blocks so far are updated, the others wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import (
    Evidence,
    Method,
    Ops,
    Reduction,
    Returns,
    Site,
    Taps,
    Value,
)
from tokenrt.passes.methods.parts import scores, steps

STATE = "global_attention"


@dataclass(frozen=True)
class EvoViT(Method):
    """Keep the K tokens with the most global class attention; the others come back before the next site.

    Global attention is a running mean, g <- (1 - tradeoff) g + tradeoff a, of the class attention a (mean over
    heads) at the sites; at the first it is a. It belongs to positions, not to the tokens kept: state
    `global_attention` [B,N] has all N, which are N again at the next site. The release averages over all
    blocks, also those between sites.
    With variant=paper the mean of the waiting tokens, weighted by global attention, is appended as the last token;
    in `assign` those it stands for are -1. Waiting tokens come back with all that the attentions and MLPs added to
    it meanwhile: adding that block by block, and making the mean anew each time, comes to the same, as the weights
    of waiting tokens stay and sum to 1. With variant=reference they come back as they left.
    The paper selects before a block: --site after-block at the block before.
    Options: tradeoff; variant; score: class, received or auto; order of the kept tokens: position, or
    score (descending, as published).
    """

    name: ClassVar[str] = "evovit"
    summary: ClassVar[str] = "update the tokens with the most class attention so far, let the others wait"
    paper: ClassVar[str] = (
        "Xu et al., Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer, AAAI 2022"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Evo-ViT",)
    drops: ClassVar[bool] = True
    returns: ClassVar[Returns] = "before-next-site"
    deviations: ClassVar[str] = (
        "paper: a representative token takes part for the tokens that wait; reference, the released DeiT form: none does"
    )

    tradeoff: float = 0.5
    variant: str = scores.REFERENCE
    score: str = "auto"
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received"))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        if not 0 <= self.tradeoff <= 1:
            raise MethodError(
                f"option tradeoff={self.tradeoff} of method {self.name!r}: expected a weight from 0 to 1"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        attention = self._global(op, taps, site)
        if self.variant == scores.PAPER:
            return self._with_representative(op, taps, site, attention)
        kept = scores.pruned(op, taps, site, attention, self.order)
        return Reduction(kept.tokens, kept.size, kept.position, kept.assign, state={STATE: attention})

    def _global(self, op: Ops, taps: Taps, site: Site) -> Value:
        attention = steps.importance(op, taps, site, self.score)
        if STATE not in taps.state:
            return attention
        before = op("Mul", taps.state[STATE], 1 - self.tradeoff)
        return op("Add", before, op("Mul", attention, self.tradeoff))

    def _with_representative(self, op: Ops, taps: Taps, site: Site, attention: Value) -> Reduction:
        kept = site.keep - 1
        index = scores.select(op, taps, site, attention, self.order, kept)
        waiting = op("Mul", scores.dropped(op, attention, index, site), attention)
        token = scores.weighted_mean(op, waiting, steps.float_tokens(op, taps))
        return scores.appended(
            op, taps, site, attention, index, token, state={STATE: attention}, represented=True
        )

    def fewest(self, tokens: int, protect: int) -> int:
        return self.after_keeping(1, protect)

    def after_keeping(self, kept: int, protect: int) -> int:
        return protect + kept + int(self.variant == scores.PAPER)
