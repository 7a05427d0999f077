"""SPA: a trained gate scores the tokens; its score is carried on, the best stay, scaled by the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps
from tokenrt.passes.methods.parts.weights import Trained

STATE = "gate"


@dataclass(frozen=True)
class SPA(Trained):
    """Keep the K tokens with the highest gate score, protected ones included, and drop the others.

    The gate is linear, GELU, linear: r = MLP(x). State `gate` [B,K] carries the score s = max(r, s of the site
    before). With scale the unprotected tokens are multiplied by sigmoid(s), as the paper trains them.
    The paper selects by a threshold and packs the tokens of all images into containers; with K tokens of every
    image there is nothing to pack.
    Options: scale; order of the kept tokens: position or score.
    """

    name: ClassVar[str] = "spa"
    summary: ClassVar[str] = "keep the tokens that a trained gate selects, scaled by it"
    paper: ClassVar[str] = (
        "Select and Pack Attention (context-aware token selection and packing), arXiv 2410.23608"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("SPA",)
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = "the K highest gate scores of each image, not those above a threshold"
    needs: ClassVar[Mapping[str, str]] = scores.GATE

    scale: bool = True
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        tokens = steps.float_tokens(op, taps)
        gate = scores.gate(op, self, site, tokens)
        score = op("Max", gate, taps.state[STATE]) if STATE in taps.state else gate
        index = scores.select(op, taps, site, score, self.order)
        kept = steps.pruned(op, taps, site, index)
        carried = scores.gather_row(op, score, index)
        rows = self._scaled(op, taps, site, kept.tokens, carried) if self.scale else kept.tokens
        return Reduction(rows, kept.size, kept.position, kept.assign, state={STATE: carried})

    def _scaled(self, op: Ops, taps: Taps, site: Site, kept: Value, score: Value) -> Value:
        """The kept tokens [B,K,C] times their gate, the protected ones as they are."""
        first = site.protect
        weight = op("Sigmoid", op("Unsqueeze", steps.cut(op, score, first, site.keep), steps.LAST))
        rest = op("Cast", steps.cut(op, kept, first, site.keep), to=steps.FLOAT)
        rest = op("CastLike", op("Mul", rest, weight), taps.tokens)
        return op("Concat", steps.cut(op, kept, 0, first), rest, axis=1) if first else rest
