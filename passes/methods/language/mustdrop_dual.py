"""MustDrop, the stage inside the language model: drop what all words together and each word alone pass over."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value, beyond
from tokenrt.passes.methods.parts import prompts, scores, steps

KEYS = "keys"


@dataclass(frozen=True)
class MustDropDual(Method):
    """Score a token by the larger of s / (all total) and m / one: s and m are the sum and the largest of the words' attention.

    Published is a pair of thresholds: a token leaves where s is below `all` times the sum over all tokens and m below `one`. So
    those that stay are those of score 1 or more, and the best K of them are what the thresholds leave where they leave K.
    The key set, the `share` of tokens that the class token of the tower attends to most, never leaves: it comes as the input
    importance at the first site and is handed on. The stage of the cache, where layers before take over the last layer's set, is
    `--cache gathered`, no method.
    Options: all and one, the thresholds; share of the tokens in the key set (0: none, and no input).
    """

    name: ClassVar[str] = "mustdrop_dual"
    summary: ClassVar[str] = "drop what the words pass over, all together and each alone"
    paper: ClassVar[str] = (
        "Liu et al., Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model, arXiv 2411.10803"
    )
    reads: ClassVar[tuple[str, ...]] = ("text_attention", "importance", "state")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "a fixed count, ranked by how far a token is above either threshold, instead of all above one"
    )
    takes: ClassVar[tuple[str, ...]] = ("importance?",)
    systems: ClassVar[tuple[str, ...]] = ("MustDrop: dropping inside the language model",)

    all: float = 0.001
    one: float = 0.001
    share: float = 0.08

    def __post_init__(self) -> None:
        for option in ("all", "one"):
            if not 0 < getattr(self, option) <= 1:
                raise MethodError(
                    f"option {option}={getattr(self, option)} of method {self.name!r}: expected more than 0 and at most 1"
                )
        if not 0 <= self.share < 1:
            raise MethodError(f"option share={self.share} of method {self.name!r}: expected 0 to less than 1")

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        attention = scores.numbers(op, beyond(taps, "text_attention"))
        total = prompts.of_words(op, attention, "ReduceSum")
        every = op("ReduceSum", steps.free(op, total, site), steps.LAST, keepdims=1)
        together = op("Div", total, op("Max", op("Mul", every, self.all), scores.EPSILON))
        alone = op("Mul", prompts.of_words(op, attention, "ReduceMax"), 1 / self.one)
        score = scores.numbers(op, op("Max", together, alone))
        keys = self._keys(op, taps, site)
        if keys is None:
            return scores.pruned(op, taps, site, score, steps.BY_POSITION)
        made = scores.pruned(
            op, taps, site, op("Where", op("Greater", keys, 0.0), scores.ALWAYS, score), steps.BY_POSITION
        )
        return replace(made, state={KEYS: scores.gather_row(op, keys, made.position)})

    def _keys(self, op: Ops, taps: Taps, site: Site) -> Value | None:
        """1 for the tokens of the key set, else 0: [B,N]; None where there is no such set."""
        if KEYS in taps.state or not self.share:
            return taps.state.get(KEYS)
        count = math.ceil(self.share * (site.tokens - site.protect))
        if count > site.keep - site.protect:
            raise PlanError(
                f"{self.name}: the key set has {count} tokens, and {site.keep - site.protect} can stay; keep more, or "
                "--set share=S for a smaller one"
            )
        own = steps.free(op, scores.unpadded(op, taps, scores.numbers(op, taps.importance())), site)
        chosen = op("TokenSelect", own, keep=count, protect=0, order=0)
        flags = op(
            "ScatterElements", op("Mul", scores.filled(op, own, 1.0, site.tokens - site.protect), 0.0),
            chosen, scores.filled(op, own, 1.0, count), axis=1,
        )  # fmt: skip
        return scores.behind_protected(op, flags, site)
