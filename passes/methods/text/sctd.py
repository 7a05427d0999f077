"""Token dropping (ScTD): the half of the tokens that training found easy skip the middle layers and come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Returns, Site, Taps
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class ScTD(Method):
    """Keep the tokens of highest importance; those that left come back, as they left, before the last block.

    Importance is a table over the vocabulary, the running mean of the loss of each token in training, which the host looks up for
    a text: the input importance [B,N], which a model gains for one block. Published: half of the tokens skip layers L/2 - 1 to
    L - 2 of L. Padding leaves first.
    """

    name: ClassVar[str] = "sctd"
    summary: ClassVar[str] = "let the tokens of least importance skip the middle layers"
    paper: ClassVar[str] = (
        "Zhong et al., Revisiting Token Dropping Strategy in Efficient BERT Pretraining, ACL 2023; Hou et al., Token Dropping "
        "for Efficient BERT Pretraining, ACL 2022"
    )
    reads: ClassVar[tuple[str, ...]] = ("importance",)
    evidence: ClassVar[Evidence] = "mathematics"
    drops: ClassVar[bool] = True
    returns: ClassVar[Returns] = "before-last-block"
    takes: ClassVar[tuple[str, ...]] = ("importance",)
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("Revisiting Token Dropping (ScTD)",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return scores.pruned(op, taps, site, scores.numbers(op, taps.importance()), steps.BY_POSITION)
