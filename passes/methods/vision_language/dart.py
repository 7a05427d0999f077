"""DART: a few pivots each take the tokens least like them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, clusters, rows, scores, steps, words

PAPER, ANGELSLIM, EDGELLM = "paper", "angelslim", "edgellm"
TOKENS, KEYS = "tokens", "keys"
TAKEN = -np.inf


@dataclass(frozen=True)
class Dart(Method):
    """Keep pivots of the picture, and for each pivot, of the picture and then of the text, the tokens least like it.

    Pivots are the tokens of largest L1 norm, by falling norm; text pivots are not among what is kept. With p of both kinds and
    K tokens to keep, a pivot takes of those that are left the ones of smallest cosine to it: floor(m / p) each of the
    m = K - (pivots of the picture), and one more the first pivots where that does not come out even (paper); ceil(m / p) until
    none are wanted (angelslim); or ceil(wanted / pivots left) at its turn (edgellm). Padding comes last.
    Options: form; pivots of the picture and text_pivots (0: the text is not read); norm: tokens, or keys, all heads in a row, as
    the paper takes inside the language model, where words have keys; elsewhere the text's rows stand for them; turns: ranks of
    the pivots in the order of their turns, such as 1,0,2 (in the paper's release that is the order of a set); order of the kept
    tokens: position, or score (as chosen).
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "keep a few pivots of large norm and the tokens least like each of them"
    paper: ClassVar[str] = (
        "Wen et al., Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, EMNLP 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "text", "keys")
    evidence: ClassVar[Evidence] = "vectors"
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    takes: ClassVar[tuple[str, ...]] = ("text?", "text_mask?")
    ascending: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "inside a language model the release compares tokens behind a copy of the model's last norm; here they are compared as "
        "they are at that layer"
    )
    engines: ClassVar[Mapping[str, str]] = {
        "TensorRT-Edge-LLM": "--visualPrune, --visualPruneAlgo dart, --dartReductionRatio"
    }
    systems: ClassVar[tuple[str, ...]] = ("DART",)

    form: str = EDGELLM
    pivots: int = 4
    text_pivots: int = 4
    norm: str = TOKENS
    turns: str = ""
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "form", self.form, (PAPER, ANGELSLIM, EDGELLM))
        steps.choice(self.name, "norm", self.norm, (TOKENS, KEYS))
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))
        steps.at_least(self.name, "pivots", self.pivots, 1)
        steps.at_least(self.name, "text_pivots", self.text_pivots, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        kept = site.keep - site.protect
        own = min(self.pivots, kept)
        unit = rows.unit(op, taps, site, steps.float_tokens(op, taps))
        pivot = op("TokenSelect", self._norms(op, taps, site), keep=own, protect=0, order=1)
        asking = steps.gather(op, unit, pivot)
        if self.text_pivots:
            asking = op(
                "Concat",
                asking,
                words.strongest(op, taps, self.text_pivots, by_keys=self.norm == KEYS),
                axis=1,
            )
        likeness = op("MatMul", asking, op("Transpose", unit, perm=[0, 2, 1]))
        chosen, free = [pivot], self._without(op, self._open(op, taps, site), pivot, own)
        for number, count in zip(self._order(own), self._shares(own, kept), strict=True):
            if not count:
                continue
            row = op("Squeeze", steps.cut(op, likeness, number, number + 1), np.array([1]))
            taken = op("TokenSelect", op("Sub", free, row), keep=count, protect=0, order=1)
            chosen.append(taken)
            free = self._without(op, free, taken, count)
        index = bipartite.joined(op, chosen)
        if self.order == steps.BY_POSITION:
            index = bipartite.ascending(op, index, kept)
        return steps.pruned(op, taps, site, clusters.whole(op, taps, site, index))

    def _norms(self, op: Ops, taps: Taps, site: Site) -> Value:
        """L1 norms [B,T] of the unprotected tokens, or of their keys; the lowest number there is for padding."""
        if self.norm == KEYS:
            norm = op("ReduceSum", op("Abs", taps.keys()), np.array([1, 3]), keepdims=0)
        else:
            norm = op("ReduceSum", op("Abs", steps.float_tokens(op, taps)), steps.LAST, keepdims=0)
        return steps.free(op, scores.unpadded(op, taps, scores.numbers(op, norm)), site)

    def _open(self, op: Ops, taps: Taps, site: Site) -> Value:
        """0 for tokens and the lowest number there is for padding: [B,T]."""
        return steps.free(
            op, scores.unpadded(op, taps, scores.filled(op, taps.tokens, 0.0, site.tokens)), site
        )

    def _without(self, op: Ops, free: Value, index: Value, count: int) -> Value:
        return op("ScatterElements", free, index, scores.filled(op, free, TAKEN, count), axis=1)

    def _order(self, own: int) -> list[int]:
        """Ranks of the pivots, of the picture and then of the text, in the order of their turns."""
        every = list(range(own + self.text_pivots))
        if not self.turns:
            return every
        try:
            asked = [int(rank) for rank in self.turns.split(",")]
        except ValueError:
            asked = []
        if sorted(asked) != every:
            raise MethodError(
                f"option turns={self.turns} of method {self.name!r}: expected each of 0 to {every[-1]} once, with commas between"
            )
        return asked

    def _shares(self, own: int, kept: int) -> list[int]:
        """How many tokens each pivot takes at its turn."""
        turns, wanted, shares = own + self.text_pivots, kept - own, list[int]()
        even, more = divmod(wanted, turns)
        for turn in range(turns):
            if self.form == PAPER:
                share = even + (turn < more)
            elif self.form == ANGELSLIM:
                share = min(even + bool(more), wanted)
            else:
                share = -(-wanted // (turns - turn))
            shares.append(share)
            wanted -= share
        return shares
