"""AIM, the stage inside the language model: keep the tokens that attention leads to, by PageRank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Home, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import scores, steps

HEADS = np.array([1])


@dataclass(frozen=True)
class AIMPageRank(Method):
    """Walk `iterations` steps along the attention of each head from a uniform start; importance is the root mean square of heads.

    Attention is softmax(z / temperature) of the model's logits z, masks and all, over all tokens of the sequence: the words
    are among them, protected. From the softmax a that the model has it is a^(1 / temperature), scaled so that rows add up to 1.
    Published at layers 14 to 20 of 28, where the share of tokens that stay falls by an eighth a layer to none.
    Options: temperature; iterations.
    """

    name: ClassVar[str] = "aim_pagerank"
    summary: ClassVar[str] = "keep the tokens that attention leads to, by PageRank"
    paper: ClassVar[str] = (
        "Zhong et al., AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning, ICCV 2025"
    )
    reads: ClassVar[tuple[str, ...]] = ("attention",)
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "prefill"
    drops: ClassVar[bool] = True
    ascending: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("AIM: pruning inside the language model",)
    deviations: ClassVar[str] = (
        "the release masks the tokens that leave; here they are gone. In a model's prompt the walk is among those tokens that "
        "the picture's own see, without the words behind it"
    )

    temperature: float = 0.1
    iterations: int = 5

    def __post_init__(self) -> None:
        steps.at_least(self.name, "iterations", self.iterations, 1)
        if not 0 < self.temperature <= 1e3:
            raise MethodError(
                f"option temperature={self.temperature} of method {self.name!r}: expected more than 0"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        attention = scores.numbers(op, taps.attention())
        most = op("Max", op("ReduceMax", attention, axes=[3], keepdims=1), scores.EPSILON)
        power = op("Pow", op("Div", attention, most), float(1 / self.temperature))
        walk = op("Div", power, op("Max", op("ReduceSum", power, steps.LAST, keepdims=1), scores.EPSILON))
        place = op("Mul", op("ReduceSum", walk, np.array([2]), keepdims=1), 1 / site.tokens)
        for _ in range(self.iterations - 1):
            place = op("MatMul", place, walk)
        square = op("ReduceMean", op("Mul", place, place), axes=[1], keepdims=0)
        score = op("Sqrt", op("Squeeze", square, HEADS))
        return scores.pruned(op, taps, site, score, steps.BY_POSITION)
