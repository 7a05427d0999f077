"""CoreMatching: keep the tokens that wake the same neurons as a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps, Value, beyond
from tokenrt.passes.methods.parts import scores, steps
from tokenrt.passes.methods.tensors import END


@dataclass(frozen=True)
class CoreMatching(Method):
    """Score a token by how many neurons of the block's MLP are awake, act(gate) up > 0, in it and in one word of the text.

    Scores are whole numbers, so that ties are common: the smaller index stays. Padding leaves first.
    Of a padded text padding is no word; where there are not so many words the first tokens stay.
    Options: word, which one (published: the fifth from the end of a LLaVA prompt, -5).
    """

    name: ClassVar[str] = "corematching"
    summary: ClassVar[str] = "keep the tokens that wake the same neurons as a word of the text"
    paper: ClassVar[str] = (
        "Wang et al., CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning, ICML 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("neurons", "text_neurons")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "a fixed count instead of the elbow of the sorted scores, behind which the release drops all ties"
    )
    systems: ClassVar[tuple[str, ...]] = ("CoreMatching: the tokens, without the neurons",)

    word: int = -5

    def __post_init__(self) -> None:
        if not -END < self.word < END:
            raise MethodError(
                f"option word={self.word} of method {self.name!r}: expected the number of a word"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        if site.words is not None and not -site.words <= self.word < site.words:
            raise PlanError(
                f"{self.name}: option word={self.word}, and the text has {site.words} words: {-site.words} to {site.words - 1}"
            )
        one = self._asked(op, _awake(op, beyond(taps, "text_neurons")), taps.text_mask())
        alike = op("MatMul", _awake(op, beyond(taps, "neurons")), op("Transpose", one, perm=[0, 2, 1]))
        return scores.pruned(op, taps, site, op("Squeeze", alike, np.array([2])), steps.BY_POSITION)

    def _asked(self, op: Ops, awake: Value, mask: Value | None) -> Value:
        """[B,1,F] of the one word; of a padded text counted among the words, none where it has not so many."""
        if mask is None:
            return steps.cut(op, awake, self.word, self.word + 1 or END)
        shown = op("Cast", op("Greater", mask, 0.0), to=steps.FLOAT)
        rank = op("CumSum", shown, np.array(1), reverse=int(self.word < 0))
        wanted = float(-self.word if self.word < 0 else self.word + 1)
        which = op("Mul", shown, op("Cast", op("Equal", rank, wanted), to=steps.FLOAT))
        return op("MatMul", op("Unsqueeze", which, np.array([1])), awake)


def _awake(op: Ops, neurons: Value) -> Value:
    return op("Cast", op("Greater", neurons, 0.0), to=steps.FLOAT)
