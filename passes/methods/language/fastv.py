"""FastV: inside a language model, keep the tokens that the prompt's last token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps


@dataclass(frozen=True)
class FastV(Method):
    """Keep the K tokens with the most attention of the prompt's last token, averaged over heads, in ascending position.

    Behind layer k - 1 with the attention of that layer, where the release says K = k; half of the image tokens leave behind
    the second layer, as published (`--layers 1 --keep 0.5`). `--span` names the image tokens, all others stay. Of prompts with
    padding the last token is the last that is none. Every sequence of the batch chooses for itself, where the release lets the
    first decide for all.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "keep the image tokens that the last token of the prompt attends to"
    paper: ClassVar[str] = (
        "Chen et al., An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large "
        "Vision-Language Models, ECCV 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("last_attention",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("FastV",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "prefill"
    ascending: ClassVar[bool] = True

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        return scores.pruned(op, taps, site, taps.last_attention(), steps.BY_POSITION)
