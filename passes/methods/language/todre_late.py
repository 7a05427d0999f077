"""ToDRE, second stage: late in the language model all tokens of the picture leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import steps


@dataclass(frozen=True)
class ToDRELate(Method):
    """Drop every token that is not protected: the words alone go on.

    The paper asks at layer 7L/8 of L whether words and picture still attend to each other, and drops all where not; that is a
    property of the model found once, so here the layer is chosen when the plan is made.
    """

    name: ClassVar[str] = "todre_late"
    summary: ClassVar[str] = "drop all tokens of the picture, late in the language model"
    paper: ClassVar[str] = (
        "Li et al., ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance, arXiv 2505.18757"
    )
    reads: ClassVar[tuple[str, ...]] = ()
    evidence: ClassVar[Evidence] = "mathematics"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "a layer that is chosen beforehand instead of a test of the attention between words and picture"
    )
    systems: ClassVar[tuple[str, ...]] = ("ToDRE: the second stage",)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        if site.keep != site.protect:
            raise PlanError(
                f"method {self.name!r} drops all {site.tokens - site.protect} tokens that may leave, and "
                f"{site.keep - site.protect} of them are to stay: say the number of all others, as in --tokens"
            )
        return steps.constantly_pruned(op, taps, site, np.arange(site.protect))

    def fewest(self, tokens: int, protect: int) -> int:
        return protect
