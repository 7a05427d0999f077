"""When Less is Enough: a trained selector keeps the features from which the others can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, layers, scores, steps
from tokenrt.passes.methods.parts.weights import Trained

ENCODER: Mapping[str, str] = {
    "self_attn.in_proj_weight": "Q,3*C,C",
    "self_attn.in_proj_bias": "Q,3*C",
    "self_attn.out_proj.weight": "Q,C,C",
    "self_attn.out_proj.bias": "Q,C",
    "linear1.weight": "Q,M,C",
    "linear1.bias": "Q,M",
    "linear2.weight": "Q,C,M",
    "linear2.bias": "Q,C",
    **{f"norm{part}.{kind}": "Q,C" for part in (1, 2) for kind in ("weight", "bias")},
}
"""The layers of the selector, stacked: Q of them."""


@dataclass(frozen=True)
class WhenLessIsEnough(Trained):
    """Keep the K features that the selector most wants to keep: transformer layers, then two logits a feature, keep and drop.

    Published are three layers and a Gumbel softmax over the logits in training, and the largest logits afterwards; the
    reconstructor that trains the selector is not needed. Ours, where nothing is published: the norm in front of attention and
    of the layers with GELU behind it, and logits ranked by their difference. Kept tokens ascend; padding is not attended to
    and leaves first.
    Options: heads (0: C / 64); weights: the tensors of all layers stacked, Q of them, and the head's.
    """

    name: ClassVar[str] = "when_less_is_enough"
    summary: ClassVar[str] = "keep the features a trained selector wants, from which the others can be told"
    paper: ClassVar[str] = (
        "Allakhverdov et al., When Less is Enough: Adaptive Token Reduction for Efficient Image Representation, arXiv 2503.16660"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "mathematics"
    drops: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {**ENCODER, "head.weight": "2,C", "head.bias": "2"}
    home: ClassVar[Home] = "features"
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("When Less is Enough",)

    heads: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "heads", self.heads, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        given = {name: self.tensor(name, site) for name in self.needs}
        count, hidden, width = given["linear1.weight"].shape
        heads = self.heads or max(width // 64, 1)
        if width % heads or (site.channels or width) != width:
            raise MethodError(
                f"method {self.name!r}: its weights have {width} channels; expected those of the tokens, {site.channels}, and a "
                f"multiple of {heads} heads (--set heads=H)"
            )
        lengths = {"Q": count, "M": hidden, "C": width, "3*C": 3 * width, "2": 2}
        for name, shape in self.needs.items():
            self.check(name, given[name], tuple(lengths[part] for part in shape.split(",")))
        shown = clusters.real(op, taps, site)
        rows: Value = clusters.finite(op, clusters.plain(op, taps, site))
        for number in range(count):
            rows = layers.encoder(op, rows, {name: given[name][number] for name in ENCODER}, heads, shown)
        head, bias = given["head.weight"], given["head.bias"]
        logit = layers.linear(op, rows, head[:1] - head[1:], bias[:1] - bias[1:])
        score = scores.behind_protected(op, op("Squeeze", logit, steps.LAST), site)
        return scores.pruned(op, taps, site, score, steps.BY_POSITION)
