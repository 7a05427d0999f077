"""A-ViT: tokens halt when their halting scores add up; the static form keeps the K that are farthest from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import scores, steps

STATE = "halting"


@dataclass(frozen=True)
class AViT(Method):
    """Keep the K tokens whose halting scores add up to least, protected ones included, and drop the others.

    At each site a token gets sigmoid(gate_scale * x_0 - gate_center), x_0 its channel 0; state `halting` [B,K]
    carries the sums. Published, a token halts when its sum reaches 1 - epsilon, which differs from picture to picture; the K
    with the lowest sums are the same tokens where that many go on. A score that is not a number halts nothing.
    The score is that of a block's output: --site after-block. Only sites add to the sums, the paper adds at
    every block; and a token that halted adds its last state to no output, since the classifier reads
    the class token, which stays. The model must be trained to halt; without, channel 0 means nothing.
    Options: gate_scale, gate_center (the paper's gamma = 5 and -beta = 10); order: position, or score (least halted first).
    """

    name: ClassVar[str] = "avit"
    summary: ClassVar[str] = "keep the tokens that are farthest from halting, by a gate in channel 0"
    paper: ClassVar[str] = "Yin et al., A-ViT: Adaptive Tokens for Efficient Vision Transformer, CVPR 2022"
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("A-ViT",)
    drops: ClassVar[bool] = True
    quota: ClassVar[str] = "the K with the lowest sums go on, not those below 1 - epsilon"

    deviations: ClassVar[str] = (
        "the release removes no token, it masks those that halted and adds up the outputs of all blocks; here they leave"
    )

    gate_scale: float = 5.0
    gate_center: float = 10.0
    order: str = steps.BY_POSITION

    def __post_init__(self) -> None:
        steps.choice(self.name, "order", self.order, tuple(steps.ORDERS))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        channel = op("Squeeze", steps.cut(op, steps.float_tokens(op, taps), 0, 1, 2), steps.LAST)
        halting = _sigmoid(op, op("Sub", op("Mul", channel, self.gate_scale), self.gate_center))
        halting = op("Where", op("IsNaN", halting), 0.0, halting)
        if STATE in taps.state:
            halting = op("Add", halting, taps.state[STATE])
        index = scores.select(op, taps, site, op("Neg", halting), self.order)
        kept = steps.pruned(op, taps, site, index)
        carried = {STATE: scores.gather_row(op, halting, index)}
        return Reduction(kept.tokens, kept.size, kept.position, kept.assign, state=carried)


def _sigmoid(op: Ops, x: Value) -> Value:
    """1 / (1 + exp(-x)), exact in the tails too, where the operator of ONNX Runtime is flat below -18."""
    tail = op("Exp", op("Neg", op("Abs", x)))
    return op("Div", op("Where", op("Less", x, 0.0), tail, 1.0), op("Add", tail, 1.0))
